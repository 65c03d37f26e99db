"""Write the config file of a run on Kaggle: the common template, with the run's names and a `[kaggle]` table."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from orchestrator.backends.kaggle.account import find_user
from orchestrator.config import named_template
from orchestrator.ports import ConfigWishes
from state.errors import UserError
from state.kaggle.names import attempt_dataset_slug, attempt_kernel_slug, check_run_fits, control_slug, slugify
from state.layout import check_run_name

_DEFAULT_NAME = "my-gemma"
_OWNER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,48}[A-Za-z0-9])?")

_KAGGLE = """
[kaggle]
{owner}
accelerator = "t4x2"       # two T4; or "cpu", which costs no quota
# internet = true          # without it a session cannot upload: its checkpoint is taken from its output
# upload_every = "1h"      # the most training time that is lost if Kaggle kills a session
# poll_every = "60s"       # how often the controller polls a session
# stop_poll_every = "3m"   # how often a session polls for gemma-orch stop
# settle = "10m"           # how long Kaggle's answers may be stale after a write
# processing_limit = "1h"  # longest wait for an uploaded dataset version
# gpu_reserve = "2h"       # weekly GPU time kept for your own notebooks; default: none
# storage_quota = "200GiB" # the account's private storage
# storage_share = 0.6      # share of it for this run's checkpoints
# token_dataset = "{account}/my-token"    # a private dataset with a scoped token; read about its risk in docs/kaggle.md first
"""


def config_for_kaggle(environment: Mapping[str, str], wishes: ConfigWishes, say: Callable[[str], None]) -> str:
    """Return a config file for a run on Kaggle; on a terminal, ask for missing names.

    Raises:
        UserError: Kaggle does not allow a name.
    """
    name, owner, ask = wishes.name, wishes.owner, wishes.ask
    found, where = find_user(environment)
    if found is not None and owner not in (None, found):
        say(f"the credentials of {where} belong to {found}, not to {owner}; gemma-orch will need those of {owner}")
    if owner is None and ask is not None:
        owner = ask("Kaggle user name", found, check_owner)
    elif owner is None and found is None:
        say(f"{where}\nthe config file names no owner: it will be the account of the credentials")
    if name is None:
        name = ask("Name of the run", _DEFAULT_NAME, check_run_name, check_run_fits) if ask is not None else _DEFAULT_NAME
    owner = owner or found
    check_names(name, owner)
    say("names on the account: " + ", ".join(f"{owner or 'OWNER'}/{slug}" for slug in slugs_of(name)) + " and so on")
    return kaggle_template(name, owner)


def kaggle_template(name: str, owner: str | None) -> str:
    """Return a commented config file for a run on Kaggle.

    Args:
        name: The run's name.
        owner: The account's user name; None: that of the credentials.

    Raises:
        UserError: Kaggle does not allow a name.
    """
    check_names(name, owner)
    said = (
        f'owner = "{owner}"' if owner is not None else '# owner = "your-user-name"    # default: the account of the credentials'
    )
    text = named_template(name).replace('# backend = "local"', 'backend = "kaggle"')
    return text + _KAGGLE.format(owner=said, account=owner or "your-user-name")


def check_names(name: str, owner: str | None) -> None:
    """Check that Kaggle allows the owner's name and every slug that a run of this name needs.

    Raises:
        UserError: Kaggle does not allow a name.
    """
    check_run_name(name)
    check_run_fits(name)
    for slug in slugs_of(name):
        assert slugify(slug) == slug, slug
    if owner is not None:
        check_owner(owner)


def check_owner(owner: str) -> None:
    """Check that a string is a possible Kaggle user name.

    Raises:
        UserError: it is not.
    """
    if not _OWNER.fullmatch(owner):
        raise UserError(
            f"Kaggle user name is invalid: {owner!r}",
            expected="letters, digits and hyphens, as in https://www.kaggle.com/NAME",
            remedy="copy NAME from the address of your profile",
        )


def slugs_of(name: str) -> tuple[str, ...]:
    """Return the slugs of a run's first kernel, of that kernel's dataset, and of the control dataset."""
    return (attempt_kernel_slug(name, 1, 1), attempt_dataset_slug(name, 1, 1), control_slug(name))
