"""The pyfunc of an encoder-decoder text model such as T5 or BART.

Version 5 of transformers dropped the pipeline ``text2text-generation``, and with it MLflow's only way to predict
with such a model. The model is still saved in MLflow's ``transformers`` flavor, for
``mlflow.transformers.load_model(uri, return_type="components")``, and this module is its pyfunc.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Text2TextGenerator"]


class Text2TextGenerator:
    """Generates one text for each input text, according to the model's generation configuration.

    Args:
        model: An encoder-decoder model with ``generate``, or a PEFT model around one.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[str]:
        """Return a generated text for each text in `model_input`.

        Args:
            model_input: A text, a list of texts, or a pandas DataFrame whose first column holds them.
            params: Arguments of ``generate``, such as ``{"max_new_tokens": 40}``.
        """
        texts = model_input.iloc[:, 0].tolist() if hasattr(model_input, "iloc") else model_input
        encoded = self.tokenizer([texts] if isinstance(texts, str) else list(texts), return_tensors="pt", padding=True)
        inputs = {name: encoded[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        generated = self.model.generate(**inputs, **(params or {}))
        return list(self.tokenizer.batch_decode(generated, skip_special_tokens=True))


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> Text2TextGenerator:  # noqa: ARG001 - MLflow's
    import mlflow.transformers

    parts = mlflow.transformers.load_model(path, return_type="components")
    return Text2TextGenerator(parts["model"], parts["tokenizer"])
