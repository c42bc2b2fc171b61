#!/bin/sh
# What dash can do alone: only built-in commands, so a root file system of dash and libc is enough.
#
# Needs a writable /tmp and nothing else. Prints the same bytes on every run; the last line is
# "dash: N checks ok", and the exit status 0.

checks=0
check() { # what, expected, actual
    checks=$((checks + 1))
    if [ "$2" != "$3" ]; then
        echo "FAILED $checks $1: expected '$2', got '$3'"
        exit 1
    fi
    echo "ok $checks $1"
}

cd /tmp || exit 1
umask 027

check "arithmetic" 3628800 $((1 * 2 * 3 * 4 * 5 * 6 * 7 * 8 * 9 * 10))
check "command substitution forks" "inner" "$(echo inner)"
check "pipe of built-ins" "b a" "$(echo a b | { read -r x y; echo "$y $x"; })"

(exit 3) &
wait $!
check "status of a child" 3 $?
for n in 1 2 3 4 5 6 7 8; do
    (exit "$n") &
done
wait
check "eight children" 0 $?

got=
trap 'got="$got usr1"' USR1
trap 'got="$got term"' TERM
kill -USR1 $$
kill -TERM $$
check "signals to itself" " usr1 term" "$got"
trap - USR1 TERM
(trap 'exit 9' TERM; kill -TERM "$(exec sh -c 'echo $PPID')"; exit 1) 2>/dev/null
check "a child traps its own signal" 9 $?
(kill -KILL "$(exec sh -c 'echo $PPID')") 2>/dev/null
check "a child kills itself" 137 $?
check "EXIT trap" "body end" "$(trap 'echo end' EXIT; printf 'body ')"

echo "line 1" >dash.out
echo "line 2" >>dash.out
lines=
while read -r word number; do
    lines="$lines$word$number;"
done <dash.out
check "file written and read" "line1;line2;" "$lines"
[ -f dash.out ] && [ -s dash.out ] && [ ! -x dash.out ]
check "file tests" 0 $?
exec 3<dash.out 4>dash.err
read -r first <&3
read -r second <&3
echo copy >&4
exec 3<&- 4>&-
check "descriptors" "line 1,line 2" "$first,$second"
read -r copied <dash.err
check "written through a descriptor" copy "$copied"
(: >/nowhere/file) 2>/dev/null
check "no such directory" 2 $?

total=0
i=0
while [ $i -lt 2000 ]; do
    total=$((total + i * i))
    i=$((i + 1))
done
check "a loop" 2664667000 $total
check "here-document through a pipe" "2: $((40 + 2))" "$(while read -r a; do echo "2: $a"; done <<EOF
$((40 + 2))
EOF
)"
big=x
while [ ${#big} -lt 100000 ]; do big=$big$big; done
check "more than a pipe holds" 131072 "$(copy=$(echo "$big"); echo ${#copy})"
check "umask" 0027 "$(umask)"
check "limits" 32 "$(ulimit -n 32; ulimit -n)"
check "path search fails" 127 "$(no-such-command 2>/dev/null; echo $?)"
: >dash.out
: >dash.err
echo "dash: $checks checks ok"
