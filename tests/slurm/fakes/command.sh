#!/bin/bash
# Stands for a command of Slurm's: records how it was called, then does what NAME.do in $FAKES says, if there is such a file.
name=${0##*/}
{ printf '%s' "$name"; printf '\t%q' "$@"; printf '\n'; } >>"$FAKES/calls"
printf '%s\0' "$@" >"$FAKES/$name.arguments"
env -0 >"$FAKES/$name.environment"
if [ -e "$FAKES/$name.do" ]; then
  . "$FAKES/$name.do"
fi
