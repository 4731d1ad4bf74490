"""What went wrong in other engines, a row a fault, and the test that sends it here.

The rows are numbered as in the contract that lists them.  Rows 12 to 16 and 20 are about downloading models
and 65 about a web page, neither of which there is: pulling answers 501 and fetches nothing.
"""

from __future__ import annotations

import ast

import pytest

from tests.docs import ROOT

WIRE, PURE, FAULTS = "wire/test_hostile.py", "pure/test_gguf.py", "faults/test_runner_faults.py"
HTTP, STORE, TEMPLATE = "wire/test_hostile_http.py", "wire/test_ollama_store.py", "pure/test_template.py"
NO_STORE = ("wire/test_ollama_client.py", "test_errors_have_their_status")
ROWS: dict[int, tuple[str, str]] = {
    1: (STORE, "test_blobs_that_are_not_what_they_should_be"),
    2: (STORE, "test_what_is_refused_says_why"),
    3: (HTTP, "test_a_foreign_host_or_origin_reaches_no_path"),
    4: ("pure/test_safetensors.py", "test_an_index_does_not_lead_out_of_the_folder"),
    5: (PURE, "test_every_cut_is_refused"),
    6: (PURE, "test_not_a_regular_file"),
    7: ("wire/test_server.py", "test_unknown_models_look_the_same_whether_or_not_a_file_is_there"),
    8: (PURE, "test_counts_of_zero_or_of_another_type"),
    9: (PURE, "test_bad_files"),
    10: (PURE, "test_lying_counts_cost_nothing"),
    11: (PURE, "test_overlap_and_misplaced_tensors"),
    **dict.fromkeys(range(12, 17), NO_STORE),
    17: ("pure/test_cli.py", "test_errors_are_one_line_and_exit_1"),
    18: (HTTP, "test_pages_for_debugging_are_not_there"),
    19: (WIRE, "test_images_that_are_none"),
    20: NO_STORE,
    21: (STORE, "test_an_upload_for_which_the_disk_has_no_room"),
    22: (PURE, "test_lying_counts_cost_nothing"),
    23: (PURE, "test_overlap_and_misplaced_tensors"),
    24: ("pure/test_tokenizer.py", "test_bad_keys"),
    25: (WIRE, "test_long_texts_of_one_letter"),
    26: (WIRE, "test_odd_numbers"),
    27: (WIRE, "test_numbers_that_json_does_not_have"),
    28: ("engine/test_engine.py", "test_the_context_is_a_limit_of_the_answer"),
    29: (WIRE, "test_long_texts_of_one_letter"),
    30: (WIRE, "test_forms_that_crash_compilers"),
    31: ("pure/test_faults.py", "test_frames_come_in_any_pieces_and_nothing_else_passes"),
    32: ("pure/test_safetensors.py", "test_links_out_of_the_folder"),
    33: (TEMPLATE, "test_no_escape"),
    34: (TEMPLATE, "test_no_escape"),
    35: (TEMPLATE, "test_bombs_end_in_time_and_memory"),
    36: (TEMPLATE, "test_a_request_sets_only_what_the_template_uses"),
    37: (WIRE, "test_nothing_to_answer"),
    38: (WIRE, "test_odd_numbers"),
    39: (WIRE, "test_schemas_that_are_none_or_never_end"),
    40: ("parsers/test_cuttings.py", "test_a_hostile_answer_takes_linear_time"),
    41: ("parsers/test_families.py", "test_qwen_coder_text_is_literal"),
    42: (WIRE, "test_distinct_schemas_keep_memory_flat"),
    43: (HTTP, "test_what_does_not_end_is_cut_and_nobody_notices"),
    44: ("wire/test_timing.py", "test_a_nearly_right_key_is_refused_as_fast_as_any"),
    45: ("wire/test_keys.py", "test_every_route_needs_a_key_but_a_short_list"),
    46: (WIRE, "test_templates_and_embeddings_of_requests"),
    47: ("wire/test_hostile_rows.py", "test_nothing_that_is_sent_becomes_code"),
    48: (WIRE, "test_no_address_in_a_request_is_fetched"),
    49: (WIRE, "test_images_that_are_none"),
    50: ("pure/test_safetensors.py", "test_code_in_the_folder_is_never_run"),
    51: ("pure/test_tokenizer.py", "test_patterns_that_explode_are_refused"),
    52: ("pure/test_safetensors.py", "test_bad_files"),
    53: ("pure/test_segments.py", "test_a_record_is_compared_by_its_tokens_and_not_by_its_key_alone"),
    54: ("pure/test_segments.py", "test_keys_depend_on_all_that_the_numbers_do"),
    55: ("wire/test_timing.py", "test_guessing_anothers_prompt_is_not_quicker"),
    56: (WIRE, "test_token_ids_that_no_vocabulary_has"),
    57: ("wire/test_server.py", "test_bad_requests_do_not_disturb_good_ones"),
    58: ("engine/test_soak.py", "test_requests_that_come_and_go_leave_nothing_behind"),
    59: ("faults/test_server_faults.py", "test_a_killed_server_leaves_no_process_and_no_port"),
    60: (FAULTS, "test_a_process_that_hangs_is_replaced"),
    61: (FAULTS, "test_a_client_that_leaves_frees_its_blocks"),
    62: (WIRE, "test_bodies_that_are_none"),
    63: (HTTP, "test_malformed_requests"),
    64: (STORE, "test_half_an_upload_leaves_nothing"),
    65: NO_STORE,
}


@pytest.mark.parametrize("row", sorted(ROWS))
def test_every_row_has_its_test(row: int) -> None:
    file, name = ROWS[row]
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (file, name)
    assert len(ROWS) == max(ROWS)


def test_nothing_that_is_sent_becomes_code() -> None:
    """Row 47, and 33, 41, 46: no module of the package can turn bytes into objects or run a text.

    One runs a text of its own: `kvasir/records.py` writes `__init__` from the names of a class's fields, as
    the standard library's dataclasses do.  Classes are written in the source and never made while it runs.
    """
    for path in (ROOT / "kvasir").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                assert module.split(".")[0] not in ("pickle", "marshal", "shelve", "dill"), path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                writes_methods = path.name == "records.py" and node.func.id == "exec"
                assert node.func.id not in ("eval", "exec", "make_dataclass") or writes_methods, path
