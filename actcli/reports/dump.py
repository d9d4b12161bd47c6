"""What `dump` answers."""

from pydantic import BaseModel, ConfigDict

from actcli.reports.base import Report


class TensorReport(BaseModel):
    """One tensor of a dump."""

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True)

    key: str
    """Its name in the file."""

    dtype: str
    """In the words of safetensors: F32, BF16, ..."""

    shape: tuple[int, ...]
    n_bytes: int


class PlanReport(Report):
    """What a dump would be (`--dry-run`)."""

    model: str
    """What was given as --init."""

    family: str
    device: str
    n_samples: int
    batch_size: int
    layers: tuple[int, ...]
    """Model layers on the layer axis."""

    tensors: tuple[TensorReport, ...]
    file_bytes: int
    """Bytes of all tensors on disk, without the header."""

    space_bytes: int
    """Space that writing takes: twice as much for .pt and .npz, which are converted at the end."""

    free_bytes: int
    """Free space in the output folder."""

    peak_memory_bytes: int
    """Estimate: this process now, the weights, the ring of buffers, what one batch computes."""


class VerificationReport(BaseModel):
    """Samples that were run again, alone, through the plain model (`--verify`)."""

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True)

    samples: tuple[int, ...]
    max_abs_difference: dict[str, float]
    """By key, between the stored values and the plain ones in the storage dtype."""

    agrees: bool


class DumpReport(Report):
    """What a dump is, and how fast it was made."""

    output: str | None
    """The file; None with --no-write."""

    file_bytes: int
    device: str
    n_samples: int
    n_batches: int
    elapsed_s: float
    """From the first batch to the last written row; without loading and the final flush."""

    samples_per_s: float
    tokens_per_s: float
    tensors: tuple[TensorReport, ...]
    non_finite: dict[str, int]
    """Stored values that are NaN or infinite, for the keys that have any."""

    verification: VerificationReport | None
