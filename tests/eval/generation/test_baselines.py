"""Which baselines results of answers hold, and why the others are not there."""

from vlora.eval.baselines import absent_notes
from vlora.eval.generation.baselines import answer_baselines


def measured(scaled=()):
    rows = [
        {"model": "a", "estimator": e} for e in ("max_probability", "mean_token_entropy", "prompt_length")
    ]
    confidences = [
        {"model": m, "confidence": "max_probability" + s} for m in ("a", "b") for s in ("", *scaled)
    ]
    return {"estimators": rows, "detection": [], "confidences": confidences}


def test_what_is_there_is_found_and_what_is_absent_explained():
    models = [{"name": "a", "kind": "posterior"}, {"name": "b", "kind": "base"}]
    found = {one["name"]: one for one in answer_baselines(measured(), models, {"ensemble": "auto"})}
    assert list(found) == ["max_probability", "entropy", "length", "temperature_scaling", "ensemble"]
    assert found["entropy"]["models"] == ["a"] and found["length"]["models"] == ["a"]
    assert found["entropy"]["missing"] == {"b": "its attempts are all right or all wrong"}
    assert found["temperature_scaling"]["models"] == [] and set(found["temperature_scaling"]["missing"]) == {
        "a",
        "b",
    }
    assert found["ensemble"]["missing"][""].startswith("1 adapter(s) that are no merges")
    notes = absent_notes({"baselines": list(found.values())})
    assert "Not among the baselines: temperature scaling of a, b: no graded attempts" in notes[3]


def test_nothing_is_absent_where_all_is_there():
    models = [{"name": "a", "kind": "posterior"}, {"name": "b", "kind": "ensemble", "members": ["a", "c"]}]
    numbers = measured(scaled=["+temperature"])
    numbers["detection"] = [{**row, "model": "b"} for row in numbers["estimators"]]
    assert absent_notes({"baselines": answer_baselines(numbers, models, {})}) == []
    off = answer_baselines(numbers, models[:1], {"ensemble": False})
    assert off[-1]["missing"] == {"": "switched off (ensemble: false)"}
