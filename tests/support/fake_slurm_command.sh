#!/bin/bash
# Fake of a Slurm command: records its arguments and environment, then runs NAME.do in $FAKES if there is such a file.
name=${0##*/}
{ printf '%s' "$name"; printf '\t%q' "$@"; printf '\n'; } >>"$FAKES/calls"
printf '%s\0' "$@" >"$FAKES/$name.arguments"
env -0 >"$FAKES/$name.environment"
if [ -e "$FAKES/$name.do" ]; then
  . "$FAKES/$name.do"
fi
