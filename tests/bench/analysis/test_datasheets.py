"""Data sheets are found by the driver's name of a card, and by nothing less."""

import pytest

from bench.analysis.datasheets import SHEETS, find_sheet, sheet_of_run


def test_a_card_is_found_by_its_whole_name_only() -> None:
    sheet = find_sheet("NVIDIA A100 80GB PCIe")
    assert sheet is not None
    assert (sheet.card, sheet.bytes_per_s) == ("A100 80GB PCIe", 1.935e12)
    assert sheet.flops_per_s == {"bfloat16": 312e12, "float16": 312e12, "float32": 19.5e12}
    for other in ("NVIDIA A100", "NVIDIA L40", "NVIDIA A10G", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "Fake GPU", ""):
        assert find_sheet(other) is None


@pytest.mark.parametrize("name", SHEETS)
def test_half_precision_is_faster_than_single_and_the_slope_meets_the_roof(name: str) -> None:
    sheet = SHEETS[name]
    assert sheet.flops_per_s["bfloat16"] == sheet.flops_per_s["float16"]
    assert sheet.flops_per_s["bfloat16"] / sheet.flops_per_s.get("float32", 1.0) > 1.9
    # operations a byte at which a layer is no longer limited by memory: tens to hundreds on every card there is
    assert 50 < sheet.flops_per_s["bfloat16"] / sheet.bytes_per_s < 500


def test_a_run_on_cards_of_two_kinds_has_no_data_sheet() -> None:
    def environment(*names: str) -> dict[str, object]:
        return {"gpus": [{"name": name} for name in names]}

    found = sheet_of_run(environment("NVIDIA L4", "NVIDIA L4"))
    assert found is not None
    assert found.card == "L4"
    assert sheet_of_run(environment("NVIDIA L4", "NVIDIA L40S")) is None
    assert sheet_of_run({"gpus": []}) is None
    assert sheet_of_run({}) is None
