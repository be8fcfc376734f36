"""What Transformers calls deprecated is an error in these tests, whether it warns or logs it."""

import pytest
from transformers import PreTrainedConfig


def test_a_logged_deprecation_is_an_error():
    with pytest.raises(DeprecationWarning, match="torch_dtype"):
        _ = PreTrainedConfig().torch_dtype
