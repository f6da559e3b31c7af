"""``catalog refresh``: EC2 over HTTP against moto's server, the Pricing API by botocore's Stubber."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import boto3
import pytest
from botocore.config import Config
from botocore.stub import Stubber
from moto.server import ThreadedMotoServer

from selfserve.catalog import load_prices
from selfserve.catalog import refresh as r
from selfserve.errors import InputError


@pytest.fixture(scope="module")
def server():
    moto = ThreadedMotoServer(port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture(autouse=True)
def credentials(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)


def client(service: str, url: str | None = None):
    return boto3.client(service, "us-east-1", endpoint_url=url, config=Config(retries={"max_attempts": 1}))


def product(*usd: float) -> str:
    dimensions = {str(i): {"unit": "Hrs", "pricePerUnit": {"USD": str(x)}} for i, x in enumerate(usd)}
    return json.dumps({"terms": {"OnDemand": {"offer": {"priceDimensions": dimensions}}}})


def answers(stub: Stubber, *pages: list[str]) -> None:
    for i, page in enumerate(pages):
        more = {"NextToken": f"page {i + 1}"} if i + 1 < len(pages) else {}
        stub.add_response("get_products", {"FormatVersion": "aws_v1", "PriceList": page} | more)


def test_instance_facts_come_from_ec2(server):
    facts = r.instance_facts(client("ec2", server), ["c6i.large", "g4dn.xlarge"])
    committed = load_prices("aws_us_east_1")
    for name in facts:
        assert facts[name]["vcpu"] == committed.loc[name, "vcpu"]
        assert facts[name]["memory_gib"] == committed.loc[name, "memory_gib"]
    assert facts["g4dn.xlarge"]["accelerator"] == "T4" and "accelerator" not in facts["c6i.large"]


def test_accelerators_that_are_no_gpus_are_read_too():
    """Inferentia and Trainium are Neuron devices (EC2 API, InstanceTypeInfo), not GPUs."""
    ec2, device = client("ec2"), {"Count": 1, "Name": "Inferentia2", "MemoryInfo": {"SizeInMiB": 32768}}
    one = {"InstanceType": "inf2.xlarge", "VCpuInfo": {"DefaultVCpus": 4}, "MemoryInfo": {"SizeInMiB": 16384}}
    with Stubber(ec2) as stub:
        stub.add_response(
            "describe_instance_types", {"InstanceTypes": [one | {"NeuronInfo": {"NeuronDevices": [device]}}]}
        )
        facts = r.instance_facts(ec2, ["inf2.xlarge"])
    assert facts["inf2.xlarge"] == {
        "vcpu": 4, "memory_gib": 16.0, "accelerator": "Inferentia2", "accelerator_count": 1, "gpu_memory_gib": 32.0,
    }  # fmt: skip


def test_spot_history_is_read_over_all_pages():
    ec2 = client("ec2")
    row = lambda usd: {"InstanceType": "c6i.large", "SpotPrice": str(usd), "Timestamp": datetime.now(UTC)}  # noqa: E731
    with Stubber(ec2) as stub:
        stub.add_response("describe_spot_price_history", {"SpotPriceHistory": [row(0.03), row(0.05)], "NextToken": "x"})
        stub.add_response("describe_spot_price_history", {"SpotPriceHistory": [row(0.04)], "NextToken": ""})
        spot = r.spot_prices(ec2, ["c6i.large"], 7)
    assert spot["c6i.large"] == {
        "spot_usd_per_hour": 0.04, "spot_min_usd_per_hour": 0.03, "spot_max_usd_per_hour": 0.05,
    }  # fmt: skip


def test_spot_history_of_a_server_without_any(server):
    assert set(r.spot_prices(client("ec2", server), ["c6i.large"], 7)) <= {"c6i.large"}


def test_list_price_skips_free_dimensions_and_reads_on():
    pricing = client("pricing")
    with Stubber(pricing) as stub:
        answers(stub, [product(0.0)], [product(0.085)])
        assert r.list_price(pricing, "c6i.large", "us-east-1") == 0.085
        stub.assert_no_pending_responses()


def test_a_type_without_a_price_is_named():
    pricing = client("pricing")
    with Stubber(pricing) as stub:
        answers(stub, [])
        with pytest.raises(InputError, match=r"c9z\.large: no on-demand price in us-east-1"):
            r.list_price(pricing, "c9z.large", "us-east-1")


def test_function_prices_are_those_of_the_first_tier():
    pricing = client("pricing")
    with Stubber(pricing) as stub:
        for tiers in ([0.0000166667, 0.0000150000], [2e-7], [4e-6], [9.7e-6]):
            answers(stub, [product(*tiers)])
        prices = r.function_prices(pricing, "us-east-1")
    assert prices["usd_per_gb_s"] == 0.0000166667 and prices["usd_per_request"] == 2e-7


def test_a_whole_list_is_one_that_scenarios_can_read(server, monkeypatch, tmp_path):
    monkeypatch.setattr(r, "list_price", lambda pricing, name, region: 0.1)
    monkeypatch.setattr(r, "function_prices", lambda pricing, region: {"usd_per_request": 3e-7})
    table = r.refresh("us-east-1", ["c6i.large", "m6i.xlarge"], endpoint_url=server)
    table.to_csv(tmp_path / "mine.csv", index=False)
    read = load_prices(str(tmp_path / "mine.csv"))
    assert read.loc["c6i.large", "usd_per_hour"] == 0.1 and read.loc["lambda", "usd_per_request"] == 3e-7
    assert set(read["as_of"]) == {datetime.now(UTC).date().isoformat()}


def test_a_refused_call_is_one_line(server, monkeypatch):
    with pytest.raises(InputError, match=r"catalog refresh: us-east-1: .*nonesuch"):
        r.refresh("us-east-1", ["nonesuch.large"], endpoint_url=server)
