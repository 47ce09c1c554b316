"""From questions to records, a few questions at a time: sample, score, judge. The part that runs the model.

1. The answer to be judged: given, or greedy at the mean (of an ensemble, the member's greedy answer that the ensemble
   as a whole finds most probable).
2. M answers under every draw.
3. Every distinct answer scored under every draw, teacher-forced; with it the model's verdict on the judged answer
   (p(True)) and the hidden states of the sampled ones.
4. Meanings and grades.
"""

from collections.abc import Sequence

import numpy as np
from torch import nn

from vlora.errors import DataError
from vlora.eval.entailment import Judge
from vlora.eval.generate import Answer, Decoding, answer_noise, generate_answers
from vlora.eval.generation.config import GenerationConfig
from vlora.eval.generation.costs import Meter
from vlora.eval.generation.drafts import Draft, Scored, judged_answer, pooled
from vlora.eval.generation.grading import grade, is_attempt
from vlora.eval.generation.meaning import find_meaning
from vlora.eval.generation.questions import Encoder, Question
from vlora.eval.generation.records import AnswerRecord, Sample
from vlora.eval.generation.token_scores import Row, TokenScore, last_states, score_rows
from vlora.eval.generation.verdicts import ask, chances
from vlora.eval.generation.voices import Voices
from vlora.eval.semantic.eigenscore import eigenscore

__all__ = ["Collector"]


class Collector:
    """Everything that is needed to turn questions into records of one model.

    Attributes:
        meter: Counts what the steps cost.
    """

    def __init__(
        self,
        config: GenerationConfig,
        encoder: Encoder,
        voices: Voices,
        *,
        decline: Sequence[str] = (),
        judge: Judge | None = None,
    ) -> None:
        self._config, self._encoder, self._voices = config, encoder, voices
        self._decline, self._judge = decline, judge
        self.meter = Meter()
        self._pad = int(voices.host.tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
        self._tokens = config.batch_tokens or voices.host.batch_tokens
        self._vocabulary = int(voices.host.model.config.get_text_config().vocab_size)
        sampling = config.sampling
        self._decoding = Decoding(
            encoder.max_new_tokens, sampling.temperature, sampling.top_p, encoder.stop_ids
        )
        whole = sampling.num_answers * max(config.num_samples, 1)  # as many answers from every model
        self._per_draw = -(-whole // voices.num_draws)

    def records(self, questions: Sequence[Question]) -> list[AnswerRecord]:
        """Records of some questions, in their order.

        Raises:
            DataError: A prompt or a given answer without tokens, or a model that gives NaN.
            ConfigError: An adapter under which nothing can be generated.
        """
        drafts = [self._draft(question) for question in questions]
        self._answer(drafts)
        self._sample(drafts)
        return self._finish(drafts)

    def _draft(self, question: Question) -> Draft:
        if question.response is None:
            return Draft(question, tuple(self._encoder.prompt(question.prompt)), [], [])
        prompt, ids = self._encoder.continuation(question.prompt, question.response)
        if not ids:  # an empty answer ends at once
            ids = sorted(self._encoder.stop_ids)[:1] or prompt[-1:]
        return Draft(question, tuple(prompt), [Answer(ids, [], [], True)], [])

    def _answer(self, drafts: Sequence[Draft]) -> None:
        """Greedy answers, for questions that come without one."""
        asked = [draft for draft in drafts if draft.question.response is None]
        if not asked:
            return
        for number in range(1 if self._voices.has_mean else self._voices.num_draws):
            voice = self._voices.mean() if self._voices.has_mean else self._voices.draw(number)
            with voice as model, self.meter.running("answer", model) as spent:
                found = generate_answers(
                    model, [draft.prompt for draft in asked], self._decoding, pad_id=self._pad
                )
                spent.add(len(asked))
            for draft, (answer,) in zip(asked, found, strict=True):
                draft.candidates.append(answer)

    def _sample(self, drafts: Sequence[Draft]) -> None:
        """M answers under every draw."""
        count = self._decoding.max_new_tokens
        for draw in range(self._voices.num_draws if self._per_draw else 0):
            noise = [
                [
                    answer_noise(self._config.seed, draft.question.item, draw, number, count)
                    for number in range(self._per_draw)
                ]
                for draft in drafts
            ]
            room = self._encoder.limit - count  # a prompt that came with a long answer may leave none
            prompts = [draft.prompt[-room:] for draft in drafts]
            with self._voices.draw(draw) as model, self.meter.running("samples", model) as spent:
                found = generate_answers(model, prompts, self._decoding, noise=noise, pad_id=self._pad)
                spent.add(len(drafts) * self._per_draw)
            for draft, answers in zip(drafts, found, strict=True):
                draft.sampled += [(draw, answer) for answer in answers]

    def _score(self, model: nn.Module, rows: Sequence[Row], step: str) -> list[TokenScore]:
        with self.meter.running(step, model) as spent:
            found = score_rows(
                model, rows, pad_id=self._pad, max_tokens=self._tokens, vocabulary=self._vocabulary
            )
            spent.add(len(rows))
        if any(np.isnan(score.log_probs).any() for score in found):
            raise DataError(
                f"model {self._voices.speaker.name!r} gives NaN instead of probabilities; check its weights and those "
                "of the base model, and try dtype: float32"
            )
        return found

    def _finish(self, drafts: Sequence[Draft]) -> list[AnswerRecord]:
        """Score all distinct answers under everything, then grade and judge."""
        rows = [Row(draft.prompt, ids) for draft in drafts for ids in draft.pool()]
        under: list[list[TokenScore]] = []
        for draw in range(self._voices.num_draws):
            with self._voices.draw(draw) as model:
                under.append(self._score(model, rows, "rescoring"))
        with self._voices.mean() as model:
            at_mean = self._score(model, rows, "rescoring") if self._voices.has_mean else None
            states = self._states(model, drafts)
        start, records = 0, []
        for draft, own in zip(drafts, states, strict=True):
            stop = start + len(draft.pool())
            draws = [scores[start:stop] for scores in under]
            scored = Scored(draft.pool(), None if at_mean is None else at_mean[start:stop], draws)
            records.append((draft, scored, scored.best(draft.num_candidates), own))
            start = stop
        judged = [self._encoder.text(scored.pool[best]) or "nothing" for _, scored, best, _ in records]
        verdicts = self._verdicts(drafts, judged)
        return [
            self._record(draft, scored, best, own, verdict)
            for (draft, scored, best, own), verdict in zip(records, verdicts, strict=True)
        ]

    def _states(self, model: nn.Module, drafts: Sequence[Draft]) -> list[float | None]:
        """EigenScore of the sampled answers of every question."""
        if not self._config.eigenscore or not drafts or len(drafts[0].sampled) < 2:
            return [None] * len(drafts)
        rows = [
            Row(d.prompt, ids) for d in drafts for ids in dict.fromkeys(tuple(a.ids) for _, a in d.sampled)
        ]
        with self.meter.running("eigenscore", model) as spent:
            states = last_states(model, rows, pad_id=self._pad, max_tokens=self._tokens)
            spent.add(len(rows))
        place = {(row.prompt, row.answer): number for number, row in enumerate(rows)}
        return [
            eigenscore(states[[place[d.prompt, tuple(answer.ids)] for _, answer in d.sampled]])
            for d in drafts
        ]

    def _verdicts(
        self, drafts: Sequence[Draft], answers: Sequence[str]
    ) -> list[tuple[float | None, list[float]]]:
        """p(True) of the judged answers at the mean and under every draw; None where verdicts cannot be told apart."""
        asked = self._config.p_true
        if asked is None:
            return [(None, [])] * len(drafts)
        strings = []
        for draft, answer in zip(drafts, answers, strict=True):
            prompt = asked.template.format(question=draft.question.question, answer=answer)
            said = (asked.spellings(asked.true), asked.spellings(asked.false))
            strings.append(ask(*([self._encoder.continuation(prompt, word) for word in own] for own in said)))
        rows = [row for one in strings for row in one.rows]
        if not rows:
            return [(None, [])] * len(drafts)
        columns = []
        for draw in range(self._voices.num_draws):
            with self._voices.draw(draw) as model:
                columns.append(chances(strings, self._score(model, rows, "p_true")))
        if self._voices.has_mean:
            with self._voices.mean() as model:
                mean = chances(strings, self._score(model, rows, "p_true"))
        else:
            mean = np.mean(columns, axis=0).tolist()
        found = iter([(mean[i], [column[i] for column in columns]) for i in range(len(mean))])
        return [next(found) if one.rows else (None, []) for one in strings]

    def _record(
        self,
        draft: Draft,
        scored: Scored,
        best: int,
        spread: float | None,
        verdict: tuple[float | None, list[float]],
    ) -> AnswerRecord:
        question = draft.question
        order = [best, *(number for number in range(len(scored.pool)) if number != best)]
        texts = [self._encoder.text(scored.pool[number]) for number in order]
        place = {scored.pool[number]: index for index, number in enumerate(order)}
        sampled = [place[tuple(answer.ids)] for _, answer in draft.sampled]
        said = question.response if question.response is not None else texts[0]
        with self.meter.judging(self._judge):
            meaning = find_meaning(question.question, texts, sampled, self._config.judge, self._judge)
            attempted, correct, failures = self._graded(question, said)
        samples = [
            Sample(draw=draw, pool=index, log_probs=answer.log_probs)
            for (draw, answer), index in zip(draft.sampled, sampled, strict=True)
        ]
        return AnswerRecord(
            model=self._voices.speaker.name,
            item=question.item,
            split=question.split,
            group=question.group,
            question=question.question,
            references=list(question.references),
            num_tokens=len(draft.prompt),
            answer=judged_answer(draft, scored, best, said, verdict),
            attempted=attempted,
            correct=correct,
            samples=samples,
            pool=pooled(scored, order, texts, meaning),
            antithetic=self._voices.speaker.antithetic,
            clusters_by=meaning.clusters_by,
            measured={**meaning.measured, **({} if spread is None else {"eigenscore": spread})},
            judge_failures=meaning.failures + failures,
        )

    def _graded(self, question: Question, said: str) -> tuple[bool, float | None, int]:
        """Whether an answer is an attempt, whether it is right, and how often the judge failed on that."""
        attempted = is_attempt(said, self._decline)
        if question.correct is not None:
            return attempted, float(question.correct), 0
        if not attempted:
            return False, 0.0, 0
        references, asked = question.references, question.question
        correct, failures = grade(said, references, self._config.grade, question=asked, judge=self._judge)
        return True, correct, failures
