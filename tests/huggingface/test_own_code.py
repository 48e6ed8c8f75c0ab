"""The user's own code that defines a model travels with it."""

from __future__ import annotations

from pathlib import Path

from processes import run_script

PROJECT = """
    import transformers
    from myproject.tokens import Lowercase
    from tracking_callbacks.huggingface.saving import code_paths_of

    config = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    model = transformers.BertForSequenceClassification(config)
    print(code_paths_of(model, None))
    print(code_paths_of(model, Lowercase()))
    model.bert.pooler.activation = Lowercase.Activation()
    print(code_paths_of(model, None))
"""


def test_only_modules_of_the_project_are_found(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "myproject").mkdir()
    (tmp_path / "myproject" / "__init__.py").touch()
    (tmp_path / "myproject" / "tokens.py").write_text(
        "import torch\n"
        "class Lowercase:\n"
        "    class Activation(torch.nn.Module):\n"
        "        def forward(self, x):\n"
        "            return x\n"
    )
    done = run_script(PROJECT, cwd=tmp_path)
    package = str([str(tmp_path / "myproject")])

    assert done.stdout.splitlines() == ["[]", package, package], done.stderr
