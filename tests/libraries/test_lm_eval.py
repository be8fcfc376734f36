"""lm-evaluation-harness on tasks in local files: likelihoods and generated text, one by one and in batches."""

import json
import random

import pytest

import gma_hf


lm_eval = pytest.importorskip("lm_eval")

CHOOSE = """
task: choose_line
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
GO_ON = """
task: go_on
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{written}}}}"
target_delimiter: ""
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 12, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def tasks(text, greedy, tmp_path_factory):
    """
    A folder of two tasks: which of two lines comes next (the other has its letters shuffled), and going on, where
    what `generate` writes is right.
    """
    folder, shuffle = tmp_path_factory.mktemp("tasks"), random.Random(0)
    lines = [line for line in text.splitlines() if 25 < len(line) < 60][:13]
    with (folder / "lines.jsonl").open("w", encoding="utf-8") as file:
        for number, (before, line) in enumerate(zip(lines, lines[1:])):
            choices, label = [line, "".join(shuffle.sample(line, len(line)))], number % 2
            prompt = (before * (1 + number % 3))[number:] + "\n"  # of unequal length
            row = {"prompt": prompt, "choices": choices[:: 1 - 2 * label], "label": label}
            row |= {"written": greedy(prompt, 12).partition("\n\n")[0]}
            file.write(json.dumps(row) + "\n")
    for task in (CHOOSE, GO_ON):
        name = task.split()[1]
        (folder / f"{name}.yaml").write_text(task.format(data=folder / "lines.jsonl"), encoding="utf-8")
    return folder


def evaluate(model, tasks, batch_size):
    return lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model)},
        tasks=["choose_line", "go_on"],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(tasks), include_defaults=False),
        batch_size=batch_size,
        device="cpu",
        bootstrap_iters=0,
    )


def test_one_by_one_and_in_batches_the_same(shakespeare, tasks):
    one, eight = (evaluate(shakespeare, tasks, batch_size) for batch_size in (1, 8))
    assert one["results"]["choose_line"]["acc,none"] == eight["results"]["choose_line"]["acc,none"] == 1.0
    for first, second in zip(one["samples"]["choose_line"], eight["samples"]["choose_line"], strict=True):
        scores = ([score for score, _ in sample["filtered_resps"]] for sample in (first, second))
        assert next(scores) == pytest.approx(next(scores), rel=1e-4)
    assert one["results"]["go_on"]["exact_match,none"] == eight["results"]["go_on"]["exact_match,none"] == 1.0
    written = [[sample["filtered_resps"][0] for sample in run["samples"]["go_on"]] for run in (one, eight)]
    assert written[0] == written[1]
    assert len(written[0]) == 12 and len(set(written[0])) > 4  # not the same to everything


def test_on_the_command_line_by_the_code_in_the_checkpoint(shakespeare, tasks, run_python, tmp_path):
    """Without `import gma_hf`: `trust_remote_code=True` is enough for what is published."""
    published = gma_hf.publish(shakespeare, "tester/gma-shakespeare", to_folder=tmp_path / "gma-shakespeare")
    command = ["-m", "lm_eval", "--model", "hf", "--tasks", "choose_line", "--batch_size", "8"]
    command += ["--model_args", f"pretrained={published},trust_remote_code=True", "--device", "cpu"]
    command += ["--include_path", str(tasks), "--output_path", str(tmp_path)]
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_DATASETS_OFFLINE": "1"}
    run_python(*command, env=environment)
    (results,) = tmp_path.rglob("results_*.json")
    assert json.loads(results.read_text())["results"]["choose_line"]["acc,none"] == 1.0
