"""A price list of today from AWS itself, through boto3: list prices, instance facts, spot history, function prices.

Nothing committed is ever touched: the list goes to a new file, which a scenario takes by ``prices = "FILE.csv"``. Needs
credentials that may call ``pricing:GetProducts``, ``ec2:DescribeInstanceTypes``, ``ec2:DescribeSpotPriceHistory``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pandas as pd
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from selfserve.catalog import load_prices
from selfserve.errors import InputError

PRICING_REGION = "us-east-1"
"""The Pricing API answers for all regions from a few endpoints, this one among them."""
MACHINE = {"operatingSystem": "Linux", "tenancy": "Shared", "preInstalledSw": "NA", "capacitystatus": "Used"}
FUNCTION_GROUPS = {
    "AWS-Lambda-Duration": "usd_per_gb_s",
    "AWS-Lambda-Requests": "usd_per_request",
    "AWS-Lambda-Provisioned-Concurrency": "provisioned_usd_per_gb_s",
    "AWS-Lambda-Duration-Provisioned": "provisioned_duration_usd_per_gb_s",
}


def refresh(
    region: str, resources: Sequence[str] | None = None, days: int = 7, endpoint_url: str | None = None
) -> pd.DataFrame:
    """Return a price list with the columns of the committed one, asked from AWS now.

    Args:
        region: such as ``us-east-1``; always stated, never taken from the environment.
        resources: instance types (default: the machines of the committed AWS list).
        days: how far back spot prices are read; median, least and most are over zones and changes of price.
        endpoint_url: another server than AWS's own, for instance moto's.

    Raises:
        InputError: no credentials, a call refused, or a resource that the region does not offer.
    """
    known = load_prices("aws_us_east_1")
    wanted = list(known.index[known["kind"] == "vm"]) if resources is None else list(resources)
    config = Config(retries={"mode": "adaptive", "max_attempts": 10})
    client = lambda service, where: boto3.client(service, where, config=config, endpoint_url=endpoint_url)  # noqa: E731
    try:
        pricing, ec2 = client("pricing", PRICING_REGION), client("ec2", region)
        facts, spot = instance_facts(ec2, wanted), spot_prices(ec2, wanted, days)
        rows = [_machine(name, list_price(pricing, name, region), facts, spot) for name in wanted]
        functions = known[known["kind"] == "function"].reset_index().to_dict("records")
        rows += [row | function_prices(pricing, region) for row in functions]
    except (BotoCoreError, ClientError) as error:
        raise InputError(f"catalog refresh: {region}: {' '.join(str(error).split())}") from error
    today = datetime.now(UTC).date().isoformat()
    table = pd.DataFrame(rows).reindex(columns=["resource", *known.columns])
    return table.assign(source=f"AWS Pricing API, {region}", as_of=today, spot_source="EC2 DescribeSpotPriceHistory",
                        spot_as_of=today)  # fmt: skip


def instance_facts(ec2: Any, wanted: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return vCPUs, memory (GiB) and accelerators of each instance type."""
    facts = {}
    for page in ec2.get_paginator("describe_instance_types").paginate(InstanceTypes=list(wanted)):
        for one in page["InstanceTypes"]:
            devices = one.get("GpuInfo", {}).get("Gpus") or one.get("NeuronInfo", {}).get("NeuronDevices")
            facts[one["InstanceType"]] = {
                "vcpu": one["VCpuInfo"]["DefaultVCpus"],
                "memory_gib": one["MemoryInfo"]["SizeInMiB"] / 1024,
            } | ({"accelerator": devices[0]["Name"], "accelerator_count": devices[0]["Count"],
                  "gpu_memory_gib": devices[0]["MemoryInfo"]["SizeInMiB"] / 1024} if devices else {})  # fmt: skip
    return facts


def spot_prices(ec2: Any, wanted: Sequence[str], days: int) -> dict[str, dict[str, Any]]:
    """Return median, least and most of the spot prices of the last ``days`` days by instance type."""
    pages = ec2.get_paginator("describe_spot_price_history").paginate(
        InstanceTypes=list(wanted), ProductDescriptions=["Linux/UNIX"], StartTime=datetime.now(UTC) - timedelta(days)
    )
    seen = pd.DataFrame(
        [(row["InstanceType"], float(row["SpotPrice"])) for page in pages for row in page["SpotPriceHistory"]],
        columns=["resource", "usd"],
    )
    names = {"median": "spot_usd_per_hour", "min": "spot_min_usd_per_hour", "max": "spot_max_usd_per_hour"}
    return seen.groupby("resource")["usd"].agg(list(names)).rename(columns=names).to_dict("index")


def list_price(pricing: Any, resource: str, region: str) -> float:
    """Return the on-demand price of a Linux machine, dollars an hour."""
    found = list(_prices(pricing, "AmazonEC2", {"instanceType": resource, "regionCode": region} | MACHINE))
    if not found:
        raise InputError(f"catalog refresh: {resource}: no on-demand price in {region}: name types offered there")
    return max(found)


def function_prices(pricing: Any, region: str) -> dict[str, float]:
    """Return the prices of functions (x86, first tier), dollars."""
    prices = {}
    for group, column in FUNCTION_GROUPS.items():
        tiers = list(_prices(pricing, "AWSLambda", {"group": group, "regionCode": region}))
        if tiers:
            prices[column] = max(tiers)  # later tiers are cheaper
    return prices


def _prices(pricing: Any, service: str, filters: dict[str, str]) -> Iterator[float]:
    """Yield the dollars of every on-demand price that the filters match."""
    wanted = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in filters.items()]
    for page in pricing.get_paginator("get_products").paginate(ServiceCode=service, Filters=wanted):
        for product in map(json.loads, page["PriceList"]):
            for offer in product["terms"].get("OnDemand", {}).values():
                for price in offer["priceDimensions"].values():
                    usd = float(price["pricePerUnit"].get("USD", 0))
                    if usd > 0:
                        yield usd


def _machine(
    resource: str, usd_per_hour: float, facts: dict[str, dict[str, Any]], spot: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    if resource not in facts:
        raise InputError(f"catalog refresh: {resource}: EC2 does not know this instance type")
    priced = spot.get(resource, {})
    basis = {"spot_basis": "median of zones and changes"} if priced else {}
    return {"resource": resource, "kind": "vm", "usd_per_hour": usd_per_hour} | facts[resource] | priced | basis
