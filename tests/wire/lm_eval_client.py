"""lm-eval, unmodified, by its local-completions adapter: `python lm_eval_client.py ADDRESS DOCUMENTS`.

DOCUMENTS is JSON: a list of {"question", "choices", "answer"}.  Prints as JSON, in their order, the
(log-probability, is it what the model would write) of each choice, the accuracy, and what the model writes
after each question, up to a line's end.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import lm_eval
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask


def task(name: str, documents: list[dict[str, Any]], **config: Any) -> ConfigurableTask:
    return ConfigurableTask(
        config={
            "task": name,
            "custom_dataset": lambda **_: {"test": Dataset.from_list(documents)},
            "test_split": "test",
            "doc_to_text": "{{question}}",
            **config,
        }
    )


def main() -> None:
    address, documents = sys.argv[1], json.loads(sys.argv[2])
    choosing = task(
        "choosing",
        documents,
        output_type="multiple_choice",
        doc_to_choice="{{choices}}",
        doc_to_target="{{answer}}",
        metric_list=[{"metric": "acc"}],
    )
    writing = task(
        "writing",
        documents,
        output_type="generate_until",
        doc_to_target="{{choices[answer]}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 12},
        metric_list=[{"metric": "exact_match"}],
    )
    reach = {"model": "mead", "base_url": f"{address}/v1/completions", "tokenizer_backend": "remote"}
    found = lm_eval.simple_evaluate(
        "local-completions", {**reach, "num_concurrent": 4}, [choosing, writing], bootstrap_iters=0
    )
    by_id = {name: sorted(rows, key=lambda row: row["doc_id"]) for name, rows in found["samples"].items()}
    told = {
        "choices": [row["filtered_resps"] for row in by_id["choosing"]],
        "accuracy": found["results"]["choosing"]["acc,none"],
        "written": [row["filtered_resps"][0] for row in by_id["writing"]],
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
