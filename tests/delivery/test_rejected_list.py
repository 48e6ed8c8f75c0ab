"""The list of refused entries in a run's folder."""

from __future__ import annotations

import json

from tracking_callbacks._delivery.rejection import SURPLUS_PARAMS, add_refused


def test_surplus_params_share_a_line_and_lines_of_another_origin_stay(tmp_path) -> None:
    path = tmp_path / "rejected.jsonl"
    planted = ["no JSON", "[]", '{"other": 1}', '{"record": "params", "params": 7}']
    path.write_text("".join(f"{line}\n" for line in planted))
    for name in ("a", "b"):
        add_refused(path, {"record": SURPLUS_PARAMS, "params": {name: "1"}, "reason": "full"})

    *before, last = path.read_text().splitlines()
    assert before == planted
    assert json.loads(last) == {"record": SURPLUS_PARAMS, "params": {"a": "1", "b": "1"}, "reason": "full"}
