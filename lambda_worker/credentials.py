"""What AWS and its SDK say when credentials are no longer good, and what is to be done then. Knows names only.

Credentials that end are renewed by the SDK before each request, where it knows how (a role, a profile with
``credential_process`` or single sign-on). What it cannot know is that keys in a file or a variable have been replaced,
or that keys were withdrawn before their time: then a new client has to be made, which reads the configuration anew.
"""

from __future__ import annotations

#: AWS knows these keys, or their token, not (any more). It means it: the same keys need not be tried again.
REFUSED = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "NoCredentials",
        "PartialCredentials",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
#: Who was asked for new ones gave none. That may pass: a service is away for a moment, a login comes too late.
UNAVAILABLE = frozenset(
    {
        "CredentialRetrieval",
        "Login",
        "LoginTokenLoad",
        "NoAuthToken",
        "SSO",
        "SSOTokenLoad",
        "StillExpired",
        "TokenRetrieval",
        "UnauthorizedSSOToken",
    }
)
#: What has a remedy of its own.
ADVICE = {
    "InvalidSignatureException": "the secret key is wrong, or this machine's clock is",
    "NoCredentials": "configure AWS credentials: a role, a profile (AWS_PROFILE) or keys",
    "UnrecognizedClientException": "AWS does not know these keys: were they deleted, or of another partition?",
}
RENEW = (
    "The AWS credentials of this process have ended, or were withdrawn, and there are no new ones: neither the tasks "
    "nor Lambda are to blame. Renew them (`aws sso login`, or whatever gave you the keys), then compute again: this "
    "cluster finds new ones by itself. Keys that renew themselves (a role, `credential_process`) avoid this"
)


def code_of(error: Exception) -> str:
    """Name an error of the SDK that AWS has not named.

    Examples
    --------
    >>> code_of(RuntimeError("Credentials were refreshed, but the refreshed credentials are still expired."))
    'StillExpired'
    >>> code_of(TimeoutError())
    'Timeout'
    """
    if isinstance(error, RuntimeError) and "credentials are still expired" in str(error):
        return "StillExpired"
    return type(error).__name__.removesuffix("Error")


def remedy_of(code: str) -> str | None:
    """Say what to do, if an error of this name is about credentials."""
    if code in REFUSED or code in UNAVAILABLE:
        return ADVICE.get(code, RENEW)
    return None
