"""Which device to run on."""

import torch

from actcli.errors import DeviceError

_BATCH_TOKENS = {"cpu": 2048}
_BATCH_TOKENS_OF_A_GPU = 16_384


def default_batch_tokens(device: torch.device) -> int:
    """The most tokens in a batch, where the user does not say: what keeps the device busy."""
    return _BATCH_TOKENS.get(device.type, _BATCH_TOKENS_OF_A_GPU)


def find_device(wanted: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

    `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        DeviceError: it is not there, or not a device.
    """
    if wanted == "auto":
        return torch.device(_best())
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise DeviceError(
            f"there is no device {wanted!r}: expected auto, cpu, cuda, cuda:N or mps"
        ) from None
    if device.type == "cuda":
        _check_cuda(device)
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("--device mps: no Apple GPU here; use --device auto or cpu")
    elif device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"--device {wanted}: expected auto, cpu, cuda, cuda:N or mps")
    return device


def _best() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _check_cuda(device: torch.device) -> None:
    if not torch.cuda.is_available():
        built = "sees no GPU" if torch.version.cuda else "was built without CUDA"
        raise DeviceError(f"--device {device}: this PyTorch {built}; use --device auto or cpu")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise DeviceError(f"--device {device}: there are {count} GPUs, cuda:0 to cuda:{count - 1}")
