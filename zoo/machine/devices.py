"""Where a run trains, and in what arithmetic it can there."""

from __future__ import annotations

from typing import Literal

import torch

from zoo.errors import ZooError


def device_of(accelerator: str) -> Literal["cuda", "mps", "cpu"]:
    """What Lightning trains on by that word; the CPU where there is nothing else, also for gpu, which `check_device`
    refuses then.
    """
    if accelerator != "cpu" and torch.cuda.is_available():
        return "cuda"
    return "mps" if accelerator != "cpu" and torch.backends.mps.is_available() else "cpu"


def check_device(accelerator: str, precision: str, devices: int) -> None:
    """Raises ZooError where a recipe asks for what this machine doesn't have."""
    device = device_of(accelerator)
    if accelerator == "gpu" and device == "cpu":
        raise ZooError(
            "trainer.accelerator is gpu, and torch finds none (python -c 'import torch; "
            "print(torch.cuda.is_available())' says so too); "
            "set it to auto or cpu"
        )
    if device == "cuda" and precision == "bf16" and not computes_bf16(accelerator):
        raise ZooError(f"trainer.precision is bf16, which {torch.cuda.get_device_name()} doesn't have; set it to 32")
    if device == "cuda" and devices > torch.cuda.device_count():
        raise ZooError(
            f"trainer.devices is {devices}, and torch finds {torch.cuda.device_count()} GPU(s) on this machine; set "
            "it to so many or less, or "
            "trainer.accelerator to cpu"
        )


def computes_bf16(accelerator: str) -> bool:
    """Whether the device has instructions for bf16. A CPU without them computes in it all the same, and takes up to ten
    times as long as in 32 bits.
    """
    device = device_of(accelerator)
    if device == "cpu":
        return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return device == "mps" or torch.cuda.is_bf16_supported(including_emulation=False)


def with_precision(resolved: dict) -> dict:
    """The recipe, in 32 bits where it asks for bf16 and its device has no instructions for that."""
    training = resolved["trainer"]
    if training["precision"] != "bf16" or computes_bf16(training["accelerator"]):
        return resolved
    return resolved | {"trainer": training | {"precision": "32"}}


def best_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
