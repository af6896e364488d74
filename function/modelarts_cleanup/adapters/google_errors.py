"""Says what an error of Google's clients means, by its code alone: its own text could hold anything."""

from collections.abc import Mapping

# By the names of google.rpc.Code; what each adapter has to say itself stands with it.
_COMMON = {
    "NOT_FOUND": "does not exist",
    "UNAVAILABLE": "cannot be reached",
    "DEADLINE_EXCEEDED": "cannot be reached in time",
}


def wrong(error: Exception, *, api: str, undone: str, table: Mapping[str, str]) -> str:
    """
    Give the end of a sentence that begins with the name of the thing.

    `undone` is what could not be done to it, as in "cannot be read".
    """
    cause = getattr(error, "cause", None) or error  # what the last of several attempts met
    if getattr(cause, "reason", None) == "SERVICE_DISABLED":  # it comes as PERMISSION_DENIED
        return f"{undone}: the API of {api} is not enabled in its project"
    code = str(getattr(getattr(cause, "grpc_status_code", None), "name", None))
    general = {
        **_COMMON,
        "UNAUTHENTICATED": f"{undone}: Google does not accept this identity",
        "RESOURCE_EXHAUSTED": f"{undone} now: the quota of {api} is used up",
    }
    return table.get(code) or general.get(code) or f"{undone}: {type(cause).__name__}"
