"""image_host.kind=s3: pictures in a bucket of Amazon S3 or of any store that speaks its protocol (MinIO, Ceph, R2).

Promise: the object is named by the hash of the picture, so uploading twice changes nothing. Without `public_url` the
bucket may stay private: the address is signed and opens one object until it expires. One request per call, on a thread
of this host's own; the guard does the retrying.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from boto3.session import Session
from botocore.config import Config as BotoConfig
from botocore.exceptions import BotoCoreError, ClientError, ConnectTimeoutError, NoCredentialsError, ReadTimeoutError

from mmsr_ray.config import ProviderConfig, S3Config
from mmsr_ray.tools.errors import AccountError, ProviderError, ToolsError
from mmsr_ray.tools.http import Http
from mmsr_ray.tools.providers.base import Keys, Provider
from mmsr_ray.tools.providers.encoded import media_type
from mmsr_ray.types import ToolFailure

_ACCESS, _SECRET = "s3.access_key", "s3.secret_key"
_SLOW = {"SlowDown", "SlowDownRead", "SlowDownWrite", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded"}
_NO_KEY = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled", "AccountProblem", "ExpiredToken"}
_MAX_THREADS = 16
_SHORTEST, _LONGEST = 60, 604_800  # seconds of a signed address: time to be fetched at all, and S3's own limit
_PIXEL = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"


class S3Host(Provider):
    """`config.url` is the endpoint, "" for Amazon's."""

    needs_url = False
    key_required = False  # it has two keys of its own

    def __init__(self, config: ProviderConfig, http: Http, s3: S3Config, keys: Keys) -> None:
        """Opens no connection. Raises ToolsError for an endpoint that is no URL."""
        super().__init__(config, http, "")
        self._s3 = s3
        self.lasts = None if s3.public_url else float(s3.expires_seconds)
        self.identity = f"{self.identity}|{s3.bucket}|{s3.prefix}|{s3.public_url}|{s3.region}"
        threads = min(config.concurrency, _MAX_THREADS)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="s3")
        for name in ("boto3", "botocore"):
            logging.getLogger(name).setLevel(logging.INFO)  # at DEBUG they write signatures
        try:
            self._client: Any = Session(
                aws_access_key_id=keys.get(_ACCESS) or None,
                aws_secret_access_key=keys.get(_SECRET) or None,
                region_name=s3.region or "us-east-1",
            ).client("s3", endpoint_url=config.url or None, config=_boto_config(config, threads))
        except (BotoCoreError, ValueError) as error:
            raise ToolsError(
                f"tools.image_host (s3) cannot be set up ({error}): correct tools.image_host.url and tools.s3.region"
            ) from None

    async def upload(self, data: bytes) -> str:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._put, data)

    async def probe(self, timeout: float) -> str:
        """By writing a picture of one pixel: a key that may only write is a good key. One request's price, the same object each time."""
        try:
            async with asyncio.timeout(timeout):
                await self.upload(_PIXEL)
        except ProviderError as error:
            return error.detail
        except TimeoutError:
            return f"S3 does not answer in {timeout:g} s: correct tools.image_host.url"
        return ""

    def _put(self, data: bytes) -> str:
        kind, key = media_type(data), self._key_of(data)
        try:
            self._client.put_object(Bucket=self._s3.bucket, Key=key, Body=data, ContentType=kind)
            if self._s3.public_url:
                return f"{self._s3.public_url.rstrip('/')}/{quote(key)}"
            return self._client.generate_presigned_url(
                "get_object", Params={"Bucket": self._s3.bucket, "Key": key}, ExpiresIn=self._s3.expires_seconds
            )
        except ClientError as error:
            raise self._refusal(error) from None
        except NoCredentialsError:
            raise AccountError("S3 has no key: name its variables in tools.s3.access_key_env and secret_key_env") from None
        except (ConnectTimeoutError, ReadTimeoutError):
            raise ProviderError(ToolFailure.TIMEOUT, f"S3: no answer in {self.config.timeout_seconds:g} s") from None
        except BotoCoreError as error:
            raise ProviderError(ToolFailure.UNAVAILABLE, self.http.redact(f"S3: {type(error).__name__}: {error}"[:300])) from None

    def _key_of(self, data: bytes) -> str:
        return "/".join(part for part in (self._s3.prefix.strip("/"), hashlib.sha256(data).hexdigest()) if part)

    def _refusal(self, error: ClientError) -> ProviderError:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        detail = f"S3: HTTP {status} {code}"
        if code in _SLOW or status == 429:
            return ProviderError(ToolFailure.RATE_LIMITED, detail, status=status)
        if status >= 500:
            return ProviderError(ToolFailure.UNAVAILABLE, detail, status=status)
        if code == "NoSuchBucket":
            return AccountError(f"{detail}: there is no bucket {self._s3.bucket!r}: make it or correct tools.s3.bucket", status=status)
        if code in _NO_KEY or status in (401, 403):
            names = " and ".join(filter(None, (self._s3.access_key_env, self._s3.secret_key_env))) or "the machine's role"
            return AccountError(f"{detail}: correct {names}, and allow writing to {self._s3.bucket!r}", status=status)
        return ProviderError(ToolFailure.REJECTED, detail, status=status)


def read_s3_keys(s3: S3Config) -> dict[str, str]:
    """Both keys, by the names under which `Keys` holds them; none where the variables' names are "" (a machine's role).

    Raises ToolsError for a variable that is not set, and for settings with which nothing can be uploaded.
    """
    if not s3.bucket:
        raise ToolsError("tools.image_host.kind=s3 needs a bucket: set tools.s3.bucket")
    if not _SHORTEST <= s3.expires_seconds <= _LONGEST:
        raise ToolsError(f"tools.s3.expires_seconds={s3.expires_seconds}: choose {_SHORTEST} to {_LONGEST}, for which S3 signs")
    variables = {name: variable for name, variable in ((_ACCESS, s3.access_key_env), (_SECRET, s3.secret_key_env)) if variable}
    keys = {name: os.environ.get(variable, "").strip() for name, variable in variables.items()}
    if missing := [variables[name] for name, key in keys.items() if not key]:
        raise ToolsError(
            f"tools.image_host (s3) needs its keys: set the environment variable {' and '.join(missing)}, or set "
            "tools.s3.access_key_env='' and tools.s3.secret_key_env='' where the machine's own role may write to the bucket"
        )
    return keys


def _boto_config(config: ProviderConfig, threads: int) -> BotoConfig:
    return BotoConfig(
        signature_version="s3v4",
        connect_timeout=config.timeout_seconds,
        read_timeout=config.timeout_seconds,
        retries={"total_max_attempts": 1},
        max_pool_connections=threads,
        s3={"addressing_style": "path" if config.url else "auto"},
        request_checksum_calculation="when_required",  # other stores do not know Amazon's newer checksums
        response_checksum_validation="when_required",
        ignore_configured_endpoint_urls=True,  # the endpoint is what our config says
    )
