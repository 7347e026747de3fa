"""Whether a quantized folder's weights are unpacked, or computed with as they are by the package that made them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynx.errors import UnsupportedModelError
from dynx.runtime.decision import Decision
from dynx.runtime.loading.quiet import importing

if TYPE_CHECKING:
    from dynx.runtime.quantized.scheme import Scheme

UNPACKED, PACKED = "unpacked", "packed"


def decide(
    scheme: Scheme, config: dict[str, Any], *, name: str, device: str, dtype: str, whole: str | None
) -> Decision[str]:
    """Decide between "unpacked" and "packed". `whole` says why the run needs ordinary weights, if it does.

    On a processor, weights that dynx can unpack are: its backends compute with them faster than the packages' kernels do there.
    Elsewhere they stay packed where the package is there and supports the device, as transformers says. Raises
    UnsupportedModelError for weights that neither can use, with what to install.
    """
    processor = device.partition(":")[0] == "cpu"
    if scheme.unpackable and (processor or whole):
        return Decision(
            UNPACKED, f"{scheme.title}, unpacked to {dtype}" + (f": {whole}" if whole and not processor else "")
        )
    missing = why_not_packed(config, device)
    if missing is None and not (whole and not scheme.unpackable):
        return Decision(PACKED, f"{scheme.title}, computed by its own package")
    if scheme.unpackable:
        return Decision(UNPACKED, f"{scheme.title}, unpacked to {dtype}: {missing}")
    why = missing or f"dynx can't unpack them, and {whole}"
    hint = f"pip install {scheme.package}" if scheme.package and missing else None
    raise UnsupportedModelError(f"{name}'s weights are quantized by {scheme.title}: {why}", hint=hint)


def why_not_packed(config: dict[str, Any], device: str) -> str | None:
    """Return why transformers can't compute with the folder's weights as they are on a device; None where it can."""
    given = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(given, dict):
        return "transformers doesn't know the format"
    with importing():
        from transformers.quantizers import AutoHfQuantizer

        try:
            quantizer = AutoHfQuantizer.from_config(dict(given), pre_quantized=True)
            quantizer.validate_environment(device_map={"": device})
        except Exception as e:  # noqa: BLE001 - any library's, about what isn't there
            return (str(e).strip() or type(e).__name__).splitlines()[0].strip()[:200]
    if getattr(quantizer.quantization_config, "dequantize", False):
        return f"its kernels don't run on {device}"
    return None
