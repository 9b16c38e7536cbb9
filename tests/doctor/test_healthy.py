"""Nothing harmful is found in healthy models; benchmarks.doctor has the whole grid of them."""

import judging
import pytest
from healthy import QUICK, Setting, healthy


@pytest.mark.parametrize("setting", QUICK, ids=str)
def test_a_healthy_model_has_no_harmful_finding(setting: Setting) -> None:
    case = healthy(setting)
    for training in (False, True):
        case.model.train(training)
        answer = judging.diagnosed(case)
        assert judging.fault_of(case, answer) == "", [(f.cause, f.symptom) for f in answer.findings]


def test_a_network_without_batch_norm_is_not_judged() -> None:
    from networks import timm_model

    model = timm_model("convnext_atto", 10)
    diagnosis = judging.xt.diagnose(model, [], progress=False)
    assert diagnosis.healthy
    assert diagnosis.findings == []
