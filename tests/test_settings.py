"""Settings from the environment."""

from pathlib import Path

import pytest

from image_search.errors import SettingsError
from image_search.settings import Settings, load_settings, variable


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("data_dir", "/some/where", Path("/some/where")),
        ("index", "my-photos-2", "my-photos-2"),
        ("index", "a" * 45, "a" * 45),
        ("namespace", "Team_A-1", "Team_A-1"),
        ("metric", "dotproduct", "dotproduct"),
        ("weights", "path/to/w.h5", "path/to/w.h5"),
        ("input_size", "224", 224),
        ("input_size", "auto", "auto"),
        ("batch_size", "7", 7),
        ("max_pixels", "1000", 1000),
        ("max_upload_bytes", "4096", 4096),
        ("host", "0.0.0.0", "0.0.0.0"),
        ("port", "65535", 65535),
    ],
)
def test_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, field: str, text: str, value: object
) -> None:
    monkeypatch.setenv(f"IMAGE_SEARCH_{field.upper()}", text)
    assert variable(field) == f"IMAGE_SEARCH_{field.upper()}"
    assert getattr(load_settings(), field) == value


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("index", "Photos"),
        ("index", "-photos"),
        ("index", "a" * 46),
        ("index", "photos\n"),
        ("namespace", "a b"),
        ("namespace", "n" * 65),
        ("metric", "manhattan"),
        ("input_size", "31"),
        ("input_size", "1025"),
        ("batch_size", "0"),
        ("batch_size", "many"),
        ("max_pixels", "0"),
        ("max_pixels", "250000001"),
        ("max_upload_bytes", "-1"),
        ("port", "0"),
        ("port", "65536"),
        ("port", "80.5"),
    ],
)
def test_bad_values_are_named(monkeypatch: pytest.MonkeyPatch, field: str, text: str) -> None:
    monkeypatch.setenv(variable(field), text)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert f"{variable(field)}={text!r}: " in str(caught.value)


def test_all_bad_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_SEARCH_PORT", "x")
    with pytest.raises(SettingsError, match=r"BATCH_SIZE=0.*; .*PORT='x'|PORT='x'.*BATCH_SIZE=0"):
        load_settings(batch_size=0)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("IMAGE_SEARCH_PROT", "did you mean IMAGE_SEARCH_PORT?"),
        ("IMAGE_SEARCH_BATCHSIZE", "did you mean IMAGE_SEARCH_BATCH_SIZE?"),
        ("IMAGE_SEARCH_WEIGHT", "did you mean IMAGE_SEARCH_WEIGHTS?"),
        # Nothing is near: the prefix that all share makes no likeness.
        ("IMAGE_SEARCH_QQQQ", ", ".join(sorted(map(variable, Settings.model_fields)))),
    ],
)
def test_unknown_variables_are_rejected(
    monkeypatch: pytest.MonkeyPatch, name: str, hint: str
) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value).startswith(f"{name} is not a setting")
    assert hint in str(caught.value)


def test_overrides_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_SEARCH_PORT", "1000")
    monkeypatch.setenv("IMAGE_SEARCH_HOST", "::1")
    settings = load_settings(port=2000)
    assert (settings.port, settings.host) == (2000, "::1")


@pytest.mark.parametrize("field", Settings.model_fields)
def test_empty_means_default(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    monkeypatch.setenv(variable(field), "")
    assert getattr(load_settings(), field) == Settings.model_fields[field].default


@pytest.mark.parametrize("field", ["data_dir", "weights", "media_root"])
def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.setenv(variable(field), "~/x")
    assert str(getattr(load_settings(), field)) == "/somewhere/x"
    assert str(getattr(load_settings(**{field: "~/y"}), field)) == "/somewhere/y"
    monkeypatch.setenv(variable(field), "~nobody-of-this-name/x")
    with pytest.raises(SettingsError, match=rf"{variable(field)}.*~nobody-of-this-name"):
        load_settings()


def test_variables_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_SEARCHER_PORT", "x")
    monkeypatch.setenv("PORT", "1")
    assert load_settings().port == 8000
