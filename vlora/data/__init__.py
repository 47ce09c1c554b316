"""Data for training and evaluation: sources, examples, tokens.

``load_rows`` reads files, folders and hub data sets; ``load_examples`` turns rows into :class:`Example`;
``vlora.data.encode`` turns examples into tokens.
"""

from vlora.data.config import DataConfig, RowFormat, Source, SourceConfig, Task
from vlora.data.continuation import Encoding, encode_continuation, join
from vlora.data.encode import (
    EncodedDataset,
    data_collator,
    encode_examples,
    fitting_length,
    wants_eos,
)
from vlora.data.examples import Example, examples_from_rows, load_examples
from vlora.data.labels import class_names
from vlora.data.sources import load_rows

__all__ = [
    "DataConfig",
    "EncodedDataset",
    "Encoding",
    "Example",
    "RowFormat",
    "Source",
    "SourceConfig",
    "Task",
    "class_names",
    "data_collator",
    "encode_continuation",
    "encode_examples",
    "examples_from_rows",
    "fitting_length",
    "join",
    "load_examples",
    "load_rows",
    "wants_eos",
]
