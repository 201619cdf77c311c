"""Variables of the environment that no event may set, whatever a policy allows.

Each of them has a program load or run something that is not the worker's command: a dynamic linker's library, a file
that a shell reads first, an option that makes an interpreter run code. An allow list that is a little too wide must not
turn the right to set a variable into the right to run a program. (Such a list is never complete: what a policy
allows should be names, not patterns.)
"""

from __future__ import annotations

import re
from typing import Final

#: The form of a name that an event or a profile may set.
ENV_NAME: Final = re.compile(r"[A-Z_][A-Z0-9_]{0,62}")

#: What each worker gets from the controller: an event cannot replace it.
_OURS: Final = r"OTTO_.*|HOME|TRACEPARENT"
#: By the program that reads them; a name stands for itself, `*` for any end.
_READERS: Final = {
    "dynamic linkers and libc": "LD_* DYLD_* GLIBC_TUNABLES GCONV_PATH LOCPATH NLSPATH MALLOC_*"
    " HOSTALIASES RES_OPTIONS",
    "shells": "PATH IFS ENV SHELL SHELLOPTS BASH* PS4 PROMPT_COMMAND ZDOTDIR CDPATH FPATH",
    "Python": "PYTHON* PIP_* VIRTUAL_ENV UV_*",
    "Perl": "PERL*",
    "Ruby": "RUBY* GEM_* BUNDLE_*",
    "Node.js": "NODE_OPTIONS NODE_PATH NODE_REPL_* NPM_CONFIG_* YARN_* ELECTRON_*",
    "Java": "JAVA_TOOL_OPTIONS _JAVA_OPTIONS JDK_JAVA_OPTIONS JAVA_OPTS JAVA_HOME CLASSPATH MAVEN_* GRADLE_* ANT_*",
    ".NET": "DOTNET_* CORECLR_* COR_* COMPLUS_*",
    "other runtimes": "LUA_* PHPRC PHP_INI_SCAN_DIR R_PROFILE* R_ENVIRON* ERL_* ELIXIR_* GUILE_* TCLLIBPATH JULIA_*",
    "git and ssh": "GIT_SSH* GIT_EXEC_PATH GIT_CONFIG* GIT_EXTERNAL_DIFF GIT_ASKPASS GIT_EDITOR GIT_SEQUENCE_EDITOR"
    " GIT_PAGER GIT_PROXY_COMMAND GIT_TEMPLATE_DIR GIT_DIR GIT_COMMON_DIR GIT_WORK_TREE SSH_ASKPASS* SSH_AUTH_SOCK",
    "programs that start others": "EDITOR VISUAL PAGER MANPAGER SYSTEMD_PAGER LESSOPEN LESSCLOSE BROWSER XDG_*"
    " TAR_OPTIONS RSYNC_RSH CVS_RSH SVN_SSH HGRCPATH PSQLRC PSQL_PAGER SUDO_ASKPASS VIMINIT EXINIT AWKLIBPATH",
    "builds": "MAKEFLAGS MAKEFILES GNUMAKEFLAGS GOFLAGS GOTOOLCHAIN GOROOT GOENV RUSTC* RUSTFLAGS CARGO_*",
    "OpenSSL": "OPENSSL_*",
}
_LOADERS: Final = re.compile(
    "|".join(re.escape(name).replace(r"\*", ".*") for names in _READERS.values() for name in names.split())
)
_RESERVED: Final = re.compile(_OURS)


def is_ours(name: str) -> bool:
    """Does the controller set this variable in each worker?"""
    return _RESERVED.fullmatch(name) is not None


def never_set(name: str) -> str:
    """Why an event may not set this variable, whatever the policy allows; empty if the policy decides."""
    if is_ours(name):
        return "the controller sets it"
    return "it changes which code a program loads or runs" if _LOADERS.fullmatch(name) else ""
