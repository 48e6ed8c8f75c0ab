"""What this package uses of other libraries without their documentation's word that it stays.

Each test only asserts that the thing exists, in a tiny real object. The table in docs/design.md says why there is no
documented way. When one fails after an upgrade, its message names the file to look at.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import functools
import importlib
import inspect
import json
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar, cast

import gymnasium as gym
import mlflow
import numpy as np
import pytest
import torch
from gymnasium import spaces
from mlflow.entities import Metric, RunData
from peft import LoraConfig
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import Figure, KVWriter
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

Test = TypeVar("Test", bound=Callable[..., None])

MLFLOW, TRANSFORMERS, PEFT, SB3 = "mlflow 3.17.2", "transformers 5.23.0", "PEFT 0.21.2", "stable_baselines3 2.9.2"


def use(what: str, read_in: str, used_in: str) -> Callable[[Test], Test]:
    """Let a test that fails say what has changed, and which file of this package relies on it.

    Args:
        what: The undocumented thing; ``{name}`` is replaced by that argument of the test.
        read_in: Library and version in which it was read.
        used_in: File below ``src/tracking_callbacks``.
    """

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        def explained(**arguments: Any) -> None:
            try:
                test(**arguments)
            except Exception as error:
                sentence = f"{what} is not as it was read in {read_in}: look at src/tracking_callbacks/{used_in}"
                raise AssertionError(sentence.format(**arguments)) from error

        return cast(Test, explained)

    return decorate


# -- mlflow ------------------------------------------------------------------------------------------------------------


@use("the tracking and registry store of a URI", MLFLOW, "mlflow_plugin/tracking_store.py, registry_store.py")
def test_mlflow_gives_the_store_of_a_uri() -> None:
    from mlflow.tracking._model_registry.utils import _get_store as get_registry
    from mlflow.tracking._tracking_service.utils import _get_store

    uri = "http://127.0.0.1:9"
    assert type(_get_store(uri)).__name__ == type(get_registry(uri, uri)).__name__ == "RestStore"


@use("the objects that MLflow's requests ask for their limits", MLFLOW, "mlflow_plugin/real_store.py")
def test_mlflows_requests_ask_the_variables_objects_for_their_limits(monkeypatch) -> None:
    from mlflow import environment_variables
    from mlflow.exceptions import MlflowException
    from mlflow.utils.rest_utils import MlflowHostCreds, http_request

    asked = []
    for variable in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setattr(
            getattr(environment_variables, variable), "get", lambda name=variable: asked.append(name) or 0
        )
    with contextlib.suppress(MlflowException, ValueError):
        http_request(MlflowHostCreds("http://127.0.0.1:9"), "/", "GET")

    assert set(asked) == {"MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"}


@use("mlflow.tracking.fluent._active_run_stack", MLFLOW, "mlflow_plugin/program_run.py")
def test_mlflow_keeps_the_active_runs_of_all_threads() -> None:
    from mlflow.tracking import fluent

    assert isinstance(fluent._active_run_stack.get_all_thread_values(), dict)


@use("mlflow.utils.validation.{name}", MLFLOW, "mlflow_plugin/")
@pytest.mark.parametrize(
    "name",
    [
        *("_validate_batch_log_data", "_validate_batch_log_limits", "_validate_experiment_name", "_validate_metric"),
        *("_validate_param", "_validate_param_keys_unique", "_validate_run_id", "_validate_tag", "missing_value"),
        *("_validate_model_name", "_validate_model_alias_name", "_validate_model_version_tag"),
        "_validate_registered_model_tag",
    ],
)
def test_mlflow_has_the_checks_of_its_stores(name: str) -> None:
    assert callable(getattr(importlib.import_module("mlflow.utils.validation"), name))


@use("the private fields of MLflow's entities", MLFLOW, "mlflow_plugin/reading.py, addresses.py, tracking_store.py")
def test_mlflows_entities_keep_their_fields_under_private_names() -> None:
    from mlflow.entities import Experiment, LoggedModel, RunInfo
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

    info = RunInfo("id", "0", "me", "RUNNING", 0, None, "active")
    model = LoggedModel("0", "m-1", "model", "place", 0, 0)
    assert {"_experiment_id", "_artifact_uri"} <= vars(info).keys()
    assert {"_model_id", "_model_uri", "_artifact_location", "_status", "_tags", "_params"} <= vars(model).keys()
    assert "_experiment_id" in vars(Experiment("0", "name", "", "active"))
    assert {"_version", "_status", "_description"} <= vars(ModelVersion("name", "1", 0)).keys()
    assert "_description" in vars(RegisteredModel("name"))


@use("mlflow.utils.name_utils._generate_random_name", MLFLOW, "mlflow_plugin/tracking_store.py")
def test_mlflow_makes_names_up() -> None:
    from mlflow.utils.name_utils import _generate_random_name

    assert _generate_random_name()


@use("mlflow.tracking.fluent._active_experiment_id", MLFLOW, "settings.py")
def test_mlflow_keeps_the_experiment_that_was_set() -> None:
    from mlflow.tracking import fluent

    assert hasattr(fluent, "_active_experiment_id")


@use("MLflow's caches of artifact clients", MLFLOW, "_delivery/stores/cached_clients.py")
def test_mlflow_keeps_clients_with_their_credentials() -> None:
    from mlflow.store.artifact import s3_artifact_repo
    from mlflow.tracking._tracking_service import utils
    from mlflow.utils import rest_utils

    assert callable(utils._artifact_repos_cache.clear)
    assert callable(s3_artifact_repo._cached_get_s3_client.cache_clear)
    assert callable(rest_utils.get_workspace_client.cache_clear)


@use("RunData._metric_objs", MLFLOW, "_delivery/stores/client.py")
def test_run_data_keeps_the_metric_objects() -> None:
    data = RunData(metrics=[Metric("loss", 0.5, 1_000, 7)])

    assert [(metric.step, metric.timestamp) for metric in data._metric_objs] == [(7, 1_000)]


@use("MlflowClient._tracking_client._get_artifact_repo", MLFLOW, "_delivery/stores/client.py")
def test_the_client_has_a_tracking_client_that_knows_where_the_files_of_a_model_lie() -> None:
    client = mlflow.MlflowClient("http://127.0.0.1:1")  # connects with the first call
    parameters = inspect.signature(client._tracking_client._get_artifact_repo).parameters

    assert list(parameters)[:2] == ["resource_id", "resource"]


@use("SqlAlchemyStore or its engine", MLFLOW, "_delivery/stores/local_store.py")
def test_a_local_store_is_built_by_its_class_and_has_an_engine(tmp_path: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(f"sqlite:///{tmp_path}/store.db", str(tmp_path / "artifacts"))
    store.engine.dispose()

    assert (tmp_path / "store.db").is_file()


@pytest.mark.parametrize(
    ("module", "function", "arguments", "used_in"),
    [
        ("mlflow.models.utils", "_save_example", ["mlflow_model", "input_example", "path"], "flavors/sb3.py"),
        (
            *("mlflow.utils.environment", "_validate_env_arguments"),
            *(["conda_env", "pip_requirements", "extra_pip_requirements"], "flavors/sb3.py"),
        ),
        ("mlflow.utils.environment", "_process_conda_env", ["conda_env"], "flavors/sb3.py"),
        (
            *("mlflow.utils.environment", "_process_pip_requirements"),
            *(["default_pip_requirements", "pip_requirements", "extra_pip_requirements"], "flavors/sb3.py"),
        ),
        (
            *("mlflow.transformers.signature", "infer_or_get_default_signature"),
            *(["pipeline"], "huggingface/saving.py"),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and value.islower() and "." not in value else None,
)
@use("{module}.{function}", MLFLOW, "{used_in}")
def test_mlflow_has_the_function(module: str, function: str, arguments: list[str], used_in: str) -> None:
    found = getattr(importlib.import_module(module), function, None)
    parameters = [] if found is None else list(inspect.signature(found).parameters)

    assert parameters[: len(arguments)] == arguments


@use("_PythonEnv", MLFLOW, "flavors/sb3.py")
def test_mlflow_describes_the_python_environment() -> None:
    from mlflow.utils.environment import _PythonEnv

    assert callable(_PythonEnv.current().to_yaml)


@pytest.mark.parametrize(
    ("constant", "tag", "used_in"),
    [
        ("MLFLOW_LOGGED_ARTIFACTS", "mlflow.loggedArtifacts", "_delivery/stores/store.py"),
        ("MLFLOW_DATASET_CONTEXT", "mlflow.data.context", "_delivery/stores/store.py"),
        ("MLFLOW_MODEL_VERSIONS", "mlflow.modelVersions", "_delivery/models.py"),
    ],
)
@use("the tag {tag}", MLFLOW, "{used_in}")
def test_mlflow_gives_the_tag_its_meaning(constant: str, tag: str, used_in: str) -> None:
    tags = importlib.import_module("mlflow.utils.mlflow_tags")

    assert getattr(tags, constant, None) == tag


# -- transformers and PEFT ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert() -> Any:
    config = BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_labels=2
    )
    return BertForSequenceClassification(config)


class Logs(TrainerCallback):
    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self.collator: Any = None

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.heard.append(dict(kwargs["logs"]))
        self.collator = kwargs["train_dataloader"].collate_fn


@use(
    "the summary of a training run",
    TRANSFORMERS,
    "huggingface/callback.py (total_flos) and huggingface/metric_names.py",
)
def test_total_flos_is_in_the_summary_and_in_no_other_log(bert: Any, tmp_path: Path) -> None:
    logs = Logs()
    rows = [{"input_ids": [1, 2], "labels": 0}] * 2
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, logging_steps=1, report_to="none", disable_tqdm=True, use_cpu=True
    )
    Trainer(bert, arguments, train_dataset=rows, callbacks=[logs]).train()

    assert ["total_flos" in heard for heard in logs.heard] == [False, False, True]
    assert {"train_runtime", "train_samples_per_second"} <= set(logs.heard[-1])


@use("CallbackHandler.add_callback or its callbacks", TRANSFORMERS, "huggingface/report_to.py")
def test_a_trainers_handler_holds_its_callbacks() -> None:
    from transformers.trainer_callback import CallbackHandler

    callback = TrainerCallback()
    handler = CallbackHandler([], None, None, None, None)
    handler.add_callback(callback)

    assert handler.callbacks == [callback]


@use("INTEGRATION_TO_CALLBACK", TRANSFORMERS, "huggingface/report_to.py")
def test_report_to_looks_a_name_up_in_a_dict() -> None:
    from transformers.integrations import integration_utils

    for name, callback in integration_utils.INTEGRATION_TO_CALLBACK.items():
        assert integration_utils.get_reporting_integration_callbacks([name]) == [callback]


@use("DEFAULT_CALLBACKS", TRANSFORMERS, "_switch.py")
def test_a_trainer_holds_the_default_callbacks(bert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import trainer

    class Further(TrainerCallback):
        pass

    monkeypatch.setattr(trainer, "DEFAULT_CALLBACKS", [*trainer.DEFAULT_CALLBACKS, Further])
    held = Trainer(bert, TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)).callback_handler

    assert any(isinstance(callback, Further) for callback in held.callbacks)


@use("the default store of a process group", "torch 2.13", "huggingface/ranks.py")
def test_a_process_group_has_a_store_with_keys(tmp_path: Path) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        store = dist.distributed_c10d._get_default_store()
        before = store.check(["tracking"])
        store.set("tracking", "key")
        found = before, store.check(["tracking"]), store.get("tracking")
    finally:
        dist.destroy_process_group()

    assert found == (False, True, b"key")


@use("TrainerState.stateful_callbacks", TRANSFORMERS, "huggingface/trainer_state.py")
def test_the_state_carries_a_dict_for_callbacks() -> None:
    from transformers import TrainerState

    assert TrainerState().stateful_callbacks == {}


@use("PIPELINE_REGISTRY.supported_tasks, or auto_class._model_mapping", TRANSFORMERS, "huggingface/tasks.py")
def test_a_pipeline_task_names_the_model_classes_that_it_takes(bert: Any) -> None:
    from transformers.pipelines import PIPELINE_REGISTRY

    auto_classes = PIPELINE_REGISTRY.supported_tasks["text-classification"]["pt"]
    known = [auto_class._model_mapping._model_mapping.get("bert") for auto_class in auto_classes]

    assert type(bert).__name__ in known


@use("auto_class._model_mapping._extra_content", TRANSFORMERS, "huggingface/tasks.py")
def test_a_registered_class_is_known_by_the_class_of_its_configuration() -> None:
    from transformers import AutoModelForSequenceClassification

    assert isinstance(AutoModelForSequenceClassification._model_mapping._extra_content, dict)


@use("OptimizedModule._orig_mod", "torch 2.13", "huggingface/save_plan.py")
def test_a_compiled_model_names_the_model_inside() -> None:
    inner = torch.nn.Linear(1, 1)

    assert torch.compile(inner)._orig_mod is inner


@use("BaseTuner.prefix, or the names of an adapter's weights", PEFT, "huggingface/base_weights.py")
def test_the_names_of_weights_say_what_belongs_to_an_adapter(bert: Any) -> None:
    from peft import get_peft_model

    model = get_peft_model(copy.deepcopy(bert), LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    names = [name for name, _ in model.named_parameters()]

    assert model.base_model.prefix == "lora_"
    for part in (".base_layer.", ".modules_to_save.", ".original_module.", ".lora_A."):
        assert any(part in name for name in names), part


@use("the keys of the transformers flavor", MLFLOW, "huggingface/saving.py")
def test_the_transformers_flavor_has_these_keys() -> None:
    from mlflow.transformers.flavor_config import FlavorKey

    keys = (FlavorKey.MODEL_TYPE, FlavorKey.MODEL_BINARY, FlavorKey.MODEL_LOCAL_BASE, FlavorKey.MODEL_REVISION)
    assert keys == ("pipeline_model_type", "model_binary", "local_base_model_path", "source_model_revision")


@use("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", TRANSFORMERS, "huggingface/tasks.py")
def test_the_classes_of_sequence_to_sequence_models_are_known_by_name() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES as NAMES

    assert NAMES["t5"] == "T5ForConditionalGeneration"


@use("RemoveColumnsCollator.data_collator", TRANSFORMERS, "huggingface/saving.py")
def test_the_collator_around_the_users_names_the_users() -> None:
    from transformers.trainer_utils import RemoveColumnsCollator

    assert RemoveColumnsCollator(list, []).data_collator is list


@pytest.mark.parametrize("module", ["transformers.trainer_pt_utils", "accelerate.data_loader"])
@use("{module}.IterableDatasetShard", f"{TRANSFORMERS} and accelerate 1.15.0", "huggingface/trainer_datasets.py")
def test_a_shard_of_a_streamed_dataset_names_the_dataset(module: str) -> None:
    class Rows(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[int]:
            return iter(range(3))

    rows = Rows()
    shard = importlib.import_module(module).IterableDatasetShard(rows)

    assert shard.dataset is rows


@use("PretrainedConfig._commit_hash, which is no setting of the model", TRANSFORMERS, "huggingface/base_model.py")
def test_a_configuration_may_carry_the_commit_of_its_revision(bert: Any) -> None:
    bert.config._commit_hash = "0123abc"

    assert "_commit_hash" not in bert.config.to_dict()


@use("PeftAdapterMixin._hf_peft_config_loaded or peft_config", TRANSFORMERS, "huggingface/adapters.py")
def test_a_model_knows_that_it_had_adapters_added(bert: Any) -> None:
    assert not getattr(bert, "_hf_peft_config_loaded", False)
    bert.add_adapter(LoraConfig(target_modules=["query"], r=1))

    assert bert._hf_peft_config_loaded is True
    assert list(bert.peft_config) == ["default"]


@use("PEFT_TYPE_TO_TUNER_MAPPING, BaseTunerLayer or ModulesToSaveWrapper", PEFT, "huggingface/adapters.py")
def test_peft_tells_which_adapters_can_be_merged() -> None:
    from peft import PEFT_TYPE_TO_TUNER_MAPPING, PeftType
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    assert hasattr(PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORA], "merge_and_unload")
    assert hasattr(BaseTunerLayer, "merge")
    assert hasattr(BaseTunerLayer, "get_base_layer")
    assert hasattr(ModulesToSaveWrapper, "unload_and_optionally_merge_module")


# -- Stable-Baselines3 -------------------------------------------------------------------------------------------------


class Days(gym.Env):
    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)
    day = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.day = 0
        return np.zeros(2, np.float32), {"day": 0}

    def step(self, action: Any) -> Any:
        self.day += 1
        return np.zeros(2, np.float32), 1.0, self.day == 4, False, {}


class Locals(BaseCallback):
    """Notes what SB3 shows to its callbacks."""

    def __init__(self) -> None:
        super().__init__()
        self.at_start: set[str] = set()
        self.at_step: set[str] = set()

    def _on_training_start(self) -> None:
        self.at_start = set(self.locals)

    def _on_step(self) -> bool:
        self.at_step = set(self.locals)
        return True


class Evaluated(EvalCallback):
    """Notes what ``evaluate_policy`` shows to its callback."""

    seen: dict[str, Any]

    def _log_success_callback(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        self.seen = dict(locals_)
        super()._log_success_callback(locals_, globals_)


@pytest.fixture(scope="module", params=[PPO, DQN], ids=["PPO", "DQN"])
def learned(request: pytest.FixtureRequest) -> tuple[Any, Locals, Evaluated]:
    env = VecNormalize(DummyVecEnv([Days]))
    settings = {"n_steps": 8, "batch_size": 8, "n_epochs": 1} if request.param is PPO else {"learning_starts": 100}
    agent = request.param("MlpPolicy", env, policy_kwargs={"net_arch": [4]}, **settings)
    seen, evaluated = Locals(), Evaluated(VecNormalize(DummyVecEnv([Days])), eval_freq=8, verbose=0, warn=False)
    agent.learn(8, callback=[seen, evaluated])
    return agent, seen, evaluated


@pytest.mark.parametrize(
    ("attribute", "kind", "used_in"),
    [
        ("_num_timesteps_at_start", int, "sb3/callback.py and sb3/episode_recorder.py"),
        ("_total_timesteps", int, "sb3/callback.py, sb3/episode_recorder.py and sb3/params.py"),
        ("start_time", (int, float), "sb3/callback.py"),
        ("_last_obs", np.ndarray, "flavors/sb3.py"),
        ("_last_episode_starts", np.ndarray, "sb3/episode_recorder.py"),
        ("_vec_normalize_env", VecNormalize, "flavors/sb3_agent.py"),
        ("policy_aliases", dict, "sb3/params.py"),
        ("lr_schedule", object, "sb3/params.py"),
    ],
)
@use("BaseAlgorithm.{attribute}", SB3, "{used_in}")
def test_a_model_has_the_attribute(learned: Any, attribute: str, kind: Any, used_in: str) -> None:
    agent, _, _ = learned

    assert isinstance(getattr(agent, attribute, None), kind)


@pytest.mark.parametrize("name", ["self", "callback", "reset_num_timesteps", "tb_log_name"])
@use("learn()'s variable {name!r}", SB3, "sb3/callback.py")
def test_callbacks_see_the_variables_of_learn_at_its_start(learned: Any, name: str) -> None:
    _, seen, _ = learned

    assert name in seen.at_start


@pytest.mark.parametrize("name", ["rewards", "dones", "infos"])
@use("collect_rollouts()'s variable {name!r}", SB3, "sb3/episode_recorder.py")
def test_callbacks_see_the_variables_of_collect_rollouts_at_each_step(learned: Any, name: str) -> None:
    _, seen, _ = learned

    assert name in seen.at_step


@pytest.mark.parametrize(
    "name", ["env", "observations", "rewards", "dones", "infos", "i", "done", "info", "is_monitor_wrapped"]
)
@use("EvalCallback._log_success_callback, or evaluate_policy's variable {name!r}", SB3, "sb3/evaluation.py")
def test_an_evaluation_shows_its_variables_to_log_success_callback(learned: Any, name: str) -> None:
    _, _, evaluated = learned

    assert name in evaluated.seen


@use("Logger.output_formats, Logger.name_to_value, KVWriter.write or Figure", SB3, "sb3/run_writer.py")
def test_the_logger_has_a_list_of_outputs_and_a_dict_of_values(learned: Any) -> None:
    agent, _, _ = learned

    assert isinstance(agent.logger.output_formats, list)
    assert isinstance(agent.logger.name_to_value, dict)
    assert list(inspect.signature(KVWriter.write).parameters) == ["self", "key_values", "key_excluded", "step"]
    assert Figure("picture", close=False).figure == "picture"


@pytest.fixture(params=["dummy", "subproc"])
def vec_env(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = DummyVecEnv([Days]) if request.param == "dummy" else SubprocVecEnv([Days], start_method="fork")
    yield made
    made.close()


@use("VecEnv.reset_infos", SB3, "sb3/episode_recorder.py and sb3/evaluation.py")
def test_a_vec_env_keeps_the_infos_of_its_resets(vec_env: Any) -> None:
    vec_env.reset()

    assert list(vec_env.reset_infos) == [{"day": 0}]


@use("VecNormalize.old_reward or old_obs", SB3, "sb3/episode_recorder.py and flavors/sb3.py")
def test_vec_normalize_keeps_what_it_normalized_last() -> None:
    env = VecNormalize(DummyVecEnv([Days]))
    env.reset()
    env.step(np.zeros(1, int))

    assert env.old_reward.tolist() == [1.0]
    assert env.old_obs.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("attribute", ["class_attributes", "returns"])
@use("VecNormalize.{attribute}", SB3, "flavors/sb3_agent.py")
def test_vec_normalize_drops_the_attribute_when_it_is_pickled(attribute: str) -> None:
    env = VecNormalize(DummyVecEnv([Days]))

    assert hasattr(env, attribute)
    assert attribute not in env.__getstate__()


@use("the attributes of model.zip under ':serialized:'", SB3, "flavors/sb3.py")
def test_a_saved_model_keeps_its_attributes_as_pickles(tmp_path: Path) -> None:
    PPO("MlpPolicy", DummyVecEnv([Days]), n_steps=8, batch_size=8).save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        attributes = json.loads(archive.read("data"))

    pickled = base64.b64decode(attributes["policy_class"][":serialized:"])
    assert "stable_baselines3.common.policies" in {text for _, text, _ in pickletools.genops(pickled)}


@use("ModelSignature._is_signature_from_type_hint", MLFLOW, "flavors/sb3.py")
def test_a_signature_can_say_that_the_model_checks_its_inputs(tmp_path: Path) -> None:
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    signature = ModelSignature(inputs=Schema([TensorSpec(np.dtype("float32"), (-1, 2))]))
    signature._is_signature_from_type_hint = True
    Model(signature=signature).save(str(tmp_path / "MLmodel"))

    assert Model.load(str(tmp_path / "MLmodel"))._is_signature_from_type_hint() is True


@use("optuna.study._optimize._run_trial, or its variables `study` and `trial`", "optuna", "_callbacks/searches.py")
def test_an_objective_finds_its_trial_among_the_callers() -> None:
    import optuna

    from tracking_callbacks._callbacks.searches import current_trial

    found = []

    def objective(trial: Any) -> float:
        trial.suggest_int("layers", 1, 3)
        found.append(current_trial())
        return 0.0

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.create_study(study_name="layers").optimize(objective, n_trials=1)

    assert current_trial() is None
    assert found[0] is not None
    assert (found[0].study, found[0].number, list(found[0].params)) == ("study layers", 0, ["layers"])


def test_a_child_of_multiprocessing_prints_what_ends_it_while_it_handles_that() -> None:
    handling = inspect.getsource(BaseProcess._bootstrap).rpartition("except:")[2]

    assert "traceback.print_exc()" in handling
    assert BaseProcess._bootstrap.__module__ == "multiprocessing.process"
