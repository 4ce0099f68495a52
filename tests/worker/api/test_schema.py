"""The OpenAPI document is true: generated callers find no answer that it does not describe."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.generation import GenerationMode

from mezzotint.sampling.request import GenerateRequest

MAX_EXAMPLES = 8
WITHOUT_INPUT = ("/healthz", "/readyz", "/metrics", "/v1/models", "/v1/images/edits", "/v1/images/variations")
"""Nothing can be sent to them that would be wrong."""

load_all_checks()
# What no JSON schema can say: that a size must fit the model's patch, or a model be there.
NOT_SAID = [CHECKS.get_one("positive_data_acceptance")]


@pytest.fixture(scope="module")
def described(lasting_gateway: Any) -> Any:
    document = lasting_gateway.call("GET", "/openapi.json").json
    # A full drawing for each example would take most of the time.
    for name in ("GenerateRequest", "ImagesRequest"):
        document["components"]["schemas"][name]["properties"]["num_inference_steps"]["maximum"] = 2
        document["components"]["schemas"][name]["properties"]["model"] = {"const": lasting_gateway.model}
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=lasting_gateway.url)
    return schema


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_generated_callers_get_what_the_schema_says(described: Any, mode: GenerationMode) -> None:
    operations = [found.ok() for found in described.get_all_operations()]
    assert len(operations) >= 14
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and operation.path in WITHOUT_INPUT:
            continue

        @settings(max_examples=MAX_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case) -> None:
            case.call_and_validate(excluded_checks=NOT_SAID, timeout=120)

        check()


def test_requests_are_described_by_the_request_itself(lasting_gateway: Any) -> None:
    schemas = lasting_gateway.call("GET", "/openapi.json").json["components"]["schemas"]
    assert schemas["GenerateRequest"]["properties"].keys() == GenerateRequest.model_fields.keys()
    assert not schemas["GenerateRequest"]["additionalProperties"]
    by_size = {"width", "height", "num_images"}
    assert GenerateRequest.model_fields.keys() - by_size <= schemas["ImagesRequest"]["properties"].keys()
    assert not by_size & schemas["ImagesRequest"]["properties"].keys()


def test_each_route_says_what_its_errors_look_like(lasting_gateway: Any) -> None:
    document = lasting_gateway.call("GET", "/openapi.json").json
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len(operations) >= 14
    for operation in operations:
        for status in ("4XX", "5XX"):
            schema = operation["responses"][status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorAnswer"}
        assert "422" not in operation["responses"]
        assert operation["summary"]
        assert operation["description"].endswith(".")
