"""Settings of models that write text: a chat endpoint, or a model that vLLM runs here. Other sections build on them."""

from __future__ import annotations

import os
from typing import Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field, model_validator

from dt2it_pipeline.config.base import DEMO_BASE_MODEL, Settings, unit
from dt2it_pipeline.config.compute import VllmRunSettings
from dt2it_pipeline.config.credentials import check_url, checked_key, is_loopback

MODEL_NAME = "model folder (a relative one counts from the project) or Hub id; `demo` ships with the package"
JUDGE_NAME = "name of the judge in tables and in the report"


class EndpointSettings(Settings):
    """A chat endpoint that speaks OpenAI's protocol: a vendor's API, or `vllm serve`.

    The key is read from the environment variable that `api_key_env` names; it is written to no file and no log.
    """

    base_url: str = Field(
        pattern=r"^https?://[^/\s]+", description="URL up to /v1, for instance https://host.example/v1"
    )
    model: str = Field(min_length=1, description="name of the model at the endpoint; replies are cached under it")
    api_key_env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="environment variable that holds the key. null: no key is sent",
    )
    concurrency: int = Field(
        8, ge=1, le=1024, json_schema_extra=unit("requests"), description="requests in flight at once"
    )
    timeout_seconds: float = Field(
        120, gt=0, le=3600, json_schema_extra=unit("seconds"), description="time limit of one request"
    )
    retries: int = Field(
        6,
        ge=0,
        le=100,
        json_schema_extra=unit("retries"),
        description="how often a request is sent again after HTTP 429, 5xx or a broken connection",
    )
    longest_wait_seconds: float = Field(
        60, gt=0, le=3600, json_schema_extra=unit("seconds"), description="longest wait before a retry"
    )
    give_up_after: int = Field(
        20,
        ge=1,
        json_schema_extra=unit("requests"),
        description="the run stops after this many requests in a row that failed after all retries",
    )
    structured: Literal["json_schema", "json_object", "none"] = Field(
        "json_schema", description="how the endpoint is asked to constrain its reply to the form of a judgement"
    )
    ordered_schema: bool = Field(
        False,
        description="json_schema: the schema has a place for every response of a list, so a weak model scores none "
        "twice. vLLM accepts such a schema (prefixItems), some other endpoints refuse it",
    )
    length_parameter: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="name of the request field that limits the length of a reply"
    )
    seeded: bool = Field(True, description="whether a seed is sent; some endpoints refuse one")
    input_price: float = Field(
        0.0, ge=0, json_schema_extra=unit("your currency"), description="price of a million tokens read"
    )
    output_price: float = Field(
        0.0, ge=0, json_schema_extra=unit("your currency"), description="price of a million tokens written"
    )

    @model_validator(mode="after")
    def _no_key_in_the_clear(self) -> EndpointSettings:
        check_url(self.base_url, "the environment variable that api_key_env names")
        parts = urlsplit(self.base_url)
        if self.api_key_env and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise ValueError("a key would travel unencrypted: use https, or no api_key_env")
        return self

    def key(self) -> str | None:
        """The key from the environment, None where none is wanted.

        Raises:
            ValueError: the variable is not set, or holds what cannot be a key (see `checked_key`), or the URL holds it.
        """
        if self.api_key_env is None:
            return None
        found = checked_key(os.environ.get(self.api_key_env, ""), f"the environment variable {self.api_key_env}")
        if not found:
            raise ValueError(
                f"the environment variable {self.api_key_env}, which holds the key of {self.base_url}, is not set"
            )
        if len(found) >= 8 and found in unquote(self.base_url):
            raise ValueError(
                f"base_url holds the key that {self.api_key_env} holds, and a URL is written to tables and logs: take "
                "the key out of it"
            )
        return found


class VllmSettings(VllmRunSettings):
    """A model that vLLM runs here."""

    model: str = Field(DEMO_BASE_MODEL, min_length=1, description=MODEL_NAME)
    max_model_len: int = Field(
        8192,
        ge=64,
        le=1_048_576,
        json_schema_extra=unit("tokens"),
        description="context length, prompt and reply together",
    )
