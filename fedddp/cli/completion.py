"""Completion for bash and zsh: of commands, options, keys, names of choices, shipped configurations.

The scripts ask ``fedddp completion words LINE`` at each Tab, so that they need no update with the package.
"""

from argparse import Namespace

from ..registry.shipped import shipped
from ..registry.spelling import SHORT
from .commands import COMMANDS
from .help import Parser
from .reference import reference

BASH = """\
_fedddp() {
    local line="${COMP_LINE:0:COMP_POINT}" word
    word="${line##* }"
    local IFS=$'\\n'
    COMPREPLY=($(fedddp completion words "$line" 2>/dev/null))
    if [[ $word == *=* ]]; then COMPREPLY=("${COMPREPLY[@]#"${word%%=*}="}"); fi # bash has split the word there
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
}
complete -o default -F _fedddp fedddp"""
ZSH = """\
#compdef fedddp
_fedddp() {
    local -a found open
    found=(${(f)"$(fedddp completion words "$LBUFFER" 2>/dev/null)"})
    open=(${(M)found:#*=})
    found=(${found:#*=})
    compadd -Q -S '' -a open
    compadd -Q -a found
    [[ ${words[CURRENT]} == -* ]] || _files
}
compdef _fedddp fedddp"""
SCRIPTS = {"bash": BASH, "zsh": ZSH}


def answer(args: Namespace) -> str:
    """``fedddp completion bash|zsh``: the script; ``words LINE``: what the last word of a line may become."""
    return SCRIPTS[args.shell] if args.shell in SCRIPTS else "\n".join(completed(args.line))


def completed(line: str) -> list[str]:
    """What the last word of a command line, cut off at the cursor, may become."""
    *before, word = line.split(" ")
    given = [one for one in before[1:] if one]
    name = next((name for name in (" ".join(given[:2]), *given[:1]) if name in COMMANDS), "")
    if not name:
        return [one for one in COMMANDS if one.startswith(word) and " " not in one]
    command = COMMANDS[name]
    if name == "help" or given[-1:] == ["--help"]:
        known = reference()
        candidates = [*COMMANDS, *known.sections, *(f"{at}.{n}" for at, c in known.choices.items() for n in c.names)]
    elif name == "completion":
        candidates = [*SCRIPTS]
    elif not word.startswith("-"):
        candidates = [*shipped(), *(["configs"] if name == "show" else [])] if command.configured else []
    elif "=" in word:
        key = word.removeprefix("--").partition("=")[0]
        candidates = [f"--{key}={value}" for value in _values(key)]
    else:
        candidates = Parser(name, command).known
        if command.configured:
            keys = dict.fromkeys([*SHORT, *(key.name for key in (*reference().keys, *reference().below(name)))])
            candidates = [*candidates, *(f"--{key}=" for key in keys)]
    return [one for one in candidates if one.startswith(word)]


def _values(key: str) -> tuple[str, ...]:
    """The names that a key, a short form, or a section that is chosen by name takes."""
    known, key = reference(), SHORT.get(key, key)
    return known.names(f"{key}.name" if key in known.choices else key)
