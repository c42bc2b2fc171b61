#!/bin/sh
# A shell script that keeps a kernel busy: forks, pipes, signals, files, fifos, limits, /proc.
#
# Runs as root under busybox ash, or dash with GNU tools; needs /proc, /dev/null, /dev/zero and a /tmp.
# Two runs print the same bytes: no pids, no times, no inode numbers, no free space. It ends with
# "script: N checks ok" and status 0; a failed check prints "FAILED" and makes the status 1.

LC_ALL=C
export LC_ALL
umask 022
checks=0
failed=0

check() { # what, expected, actual
    checks=$((checks + 1))
    if [ "$2" = "$3" ]; then
        echo "ok $checks $1"
    else
        failed=$((failed + 1))
        echo "FAILED $checks $1: expected '$2', got '$3'"
    fi
}

check_status() { # what, expected status, command...
    what=$1
    expected=$2
    shift 2
    "$@" >/dev/null 2>&1
    check "$what" "$expected" $?
}

section() {
    echo "== $1"
}

# Waits until a file exists; a child says that way that its trap is set. Gives up after 20 s.
await() {
    tries=0
    while [ ! -e "$1" ] && [ $tries -lt 2000 ]; do
        sleep 0.01
        tries=$((tries + 1))
    done
    [ -e "$1" ]
}

work=$(mktemp -d /tmp/script.XXXXXX) || exit 1
check "mktemp made a directory" "drwx------" "$(ls -ld "$work" | cut -c1-10)"
cd "$work" || exit 1

section "arithmetic and text"
check "arithmetic" 42 $(((3 + 4) * 6))
check "bits and shifts" 251 $(((0xff & ~0x0f) | (1 << 3) | 3))
check "modulo and comparison" "2 1 0" "$((17 % 5)) $((3 > 2)) $((3 < 2))"
fib() {
    if [ "$1" -lt 2 ]; then echo "$1"; else echo $(($(fib $(($1 - 1))) + $(fib $(($1 - 2))))); fi
}
check "recursion through subshells" 21 "$(fib 8)"
text="one two  three"
set -- $text
check "word splitting" 3 $#
check "quoting keeps spaces" "$text" "one two  three"
path=/usr/lib/x86_64/libc.so.6
check "suffix removal" "/usr/lib/x86_64" "${path%/*}"
check "prefix removal" "libc.so.6" "${path##*/}"
check "default value" "fallback" "${unset_variable:-fallback}"
check "length" 13 "$(set -- "abcdefghijklm"; echo ${#1})"
old_ifs=$IFS
IFS=:
set -- a:b:c
set -- $1
IFS=$old_ifs
check "IFS splitting" "a-b-c" "$1-$2-$3"

section "functions, case, getopts"
kind_of() {
    case $1 in
        [0-9]*) echo number ;;
        *.tar.gz | *.tgz) echo archive ;;
        -?*) echo option ;;
        "") echo empty ;;
        *) echo word ;;
    esac
}
check "case" "number archive option empty word" \
    "$(kind_of 12) $(kind_of a.tgz) $(kind_of -v) $(kind_of '') $(kind_of hello)"
options() {
    OPTIND=1
    found=
    while getopts "ab:c" option; do
        case $option in
            a | c) found="$found$option " ;;
            b) found="${found}b=$OPTARG " ;;
            *) found="${found}? " ;;
        esac
    done
    shift $((OPTIND - 1))
    echo "$found| $*"
}
check "getopts" "a b=value c | rest of it" "$(options -a -b value -c rest of it)"
check "local return status" 7 "$(f() { return 7; }; f; echo $?)"

section "exit statuses"
check_status "true" 0 true
check_status "false" 1 false
check_status "command not found" 127 sh -c no-such-command-anywhere
touch plain && chmod 644 plain
check_status "not executable" 126 sh -c ./plain
check_status "exit value wraps at 256" 1 sh -c 'exit 257'
check_status "death by signal" 143 sh -c 'kill -TERM $$'
check "negation and lists" "yes" "$(! false && true || echo no; ! false && echo yes)"
check "set -e leaves a subshell" "before 1" "$( (set -e; echo before; false; echo after) | tr '\n' ' ')1"
(set -e; false; true)
check "set -e status" 1 $?
check_status "set -u stops" 2 sh -c 'set -u; echo $nothing_is_set'

section "pipes and subshells"
check "pipe of five" "3 c" "$(printf 'c\na\nb\nc\nc\n' | sort | uniq -c | sort -rn | head -n 1 | awk '{print $1, $2}')"
check "status of a pipe is the last one's" 0 "$(false | true; echo $?)"
check "subshell keeps its variables" "outer inner" "$(v=outer; (v=inner; echo $v >v.txt); echo $v "$(cat v.txt)")"
check "nested substitution" "deep" "$(echo "$(echo "$(echo "$(echo deep)")")")"
total=0
while read -r a b; do
    total=$((total + a * b))
done <<EOF
1 2
3 4
5 6
EOF
check "read loop over a here-document" 44 $total
check "here-document expands" "sum 3 \$x" "$(cat <<EOF
sum $((1 + 2)) \$x
EOF
)"
check "quoted here-document does not" 'sum $((1 + 2))' "$(cat <<'EOF'
sum $((1 + 2))
EOF
)"
check "tabs are stripped" "indented" "$(cat <<-EOF
		indented
	EOF
)"
check "read splits the last field" "a|b c d" "$(echo "a b c d" | { read -r x y; echo "$x|$y"; })"

section "many processes"
seq 1 40 >numbers
count=0
for n in $(cat numbers); do
    count=$((count + $(echo "$n")))
done
check "forty substitutions" 820 $count
check "xargs in groups" 8 "$(xargs -n 5 echo <numbers | wc -l | tr -d ' ')"
check "xargs runs a shell each" "2 4 6 8 10" "$(seq 1 5 | xargs -n 1 sh -c 'echo $(($0 * 2))' | xargs)"
check "find -exec" 3 "$(mkdir -p fx && touch fx/a fx/b fx/c && find fx -type f -exec sh -c 'echo x' \; | wc -l | tr -d ' ')"

section "background jobs"
for n in 1 2 3 4 5 6; do
    (sleep 0.1; echo "job $n" >"job.$n") &
done
wait
check "six jobs wrote" 6 "$(cat job.? | wc -l | tr -d ' ')"
(sleep 0.05; exit 9) &
wait $!
check "wait gives the status" 9 $?
sleep 30 &
sleeper=$!
kill -0 $sleeper
check "kill -0 finds it" 0 $?
kill -TERM $sleeper
wait $sleeper 2>/dev/null
check "killed sleeper" 143 $?
kill -0 $sleeper 2>/dev/null
check "kill -0 finds it no more" 1 $?
sleep 1 && slept=yes
check "a whole second" yes "$slept"

section "signals"
got=
trap 'got="${got}USR1 "' USR1
trap 'got="${got}TERM "' TERM
trap 'got="${got}HUP "' HUP
kill -USR1 $$
kill -TERM $$
kill -HUP $$
kill -USR1 $$
check "traps in order" "USR1 TERM HUP USR1 " "$got"
trap - USR1 TERM HUP
trap '' USR2
kill -USR2 $$
check "ignored signal" 0 $?
check_status "children inherit an ignored signal" 3 sh -c 'kill -USR2 $$; exit 3'
trap - USR2
check "trap on EXIT runs" "body exit" "$(sh -c 'trap "echo exit" EXIT; echo body' | xargs)"
check "EXIT trap keeps the status" 5 "$(sh -c 'trap "true" EXIT; exit 5'; echo $?)"
cat >child.sh <<'EOF'
trap 'echo caught >child.out; exit 12' USR1
: >child.ready
while :; do sleep 0.01; done
EOF
sh child.sh &
child=$!
await child.ready
kill -USR1 $child
wait $child
check "child's trap and status" "12 caught" "$? $(cat child.out)"
sh -c 'trap "" TERM; : >deaf.ready; while :; do sleep 0.02; done' 2>/dev/null &
deaf=$!
await deaf.ready
kill -TERM $deaf
sleep 0.05
kill -0 $deaf
check "TERM ignored" 0 $?
kill -KILL $deaf
wait $deaf 2>/dev/null
check "KILL is not" 137 $?
sleep 30 &
stopped=$!
kill -STOP $stopped
n=0
until grep -q '^State:.T' /proc/$stopped/status || [ $n -ge 500 ]; do sleep 0.01; n=$((n + 1)); done
check "stopped" "T" "$(sed -n 's/^State:.\(.\).*/\1/p' /proc/$stopped/status)"
kill -CONT $stopped
kill -KILL $stopped 2>/dev/null
wait $stopped 2>/dev/null
check "continued and killed" 137 $?
check_status "pipe reader gone" 0 sh -c 'yes | head -n 3'
(trap '' HUP; : >hup.ready; sleep 0.05; echo survived >nohup.out) &
patient=$!
await hup.ready
kill -HUP $patient
wait $patient
check "like nohup" "0 survived" "$? $(cat nohup.out)"

section "files"
printf 'first\n' >f
printf 'second\n' >>f
check "append" "first second" "$(xargs <f)"
: >f
check "truncate" 0 "$(wc -c <f | tr -d ' ')"
set -C
check "noclobber" 1 "$( (echo x >f) 2>/dev/null; [ $? -ne 0 ] && echo 1)"
set +C
echo content >a
ln a b
ln -s a s
ln -s nowhere dangling
check "hard link count" 2 "$(stat -c %h a)"
check "symlink" "a content" "$(readlink s) $(cat s)"
check_status "dangling symlink" 1 cat dangling
[ a -ef b ]
check "same inode" 0 $?
mv a c
check "renamed" "content" "$(cat b)"
rm b
check "one link left" 1 "$(stat -c %h c)"
chmod 4751 c
check "mode" "4751 -rwsr-x--x" "$(stat -c '%a %A' c)"
chmod u=rw,go= c
check "symbolic mode" 600 "$(stat -c %a c)"
chown 12:34 c
check "owner" "12:34 8" "$(stat -c '%u:%g %s' c)"
touch -d '2001-02-03 04:05:06' c
check "time of modification" 981173106 "$(TZ=UTC stat -c %Y c)"
(umask 077; touch private; mkdir private.d)
check "umask" "600 700" "$(stat -c %a private private.d | xargs)"
check "umask printed" 0022 "$(umask)"
check "test operators" "f d L s x" "$([ -f c ] && printf 'f '; [ -d private.d ] && printf 'd '; [ -L s ] && printf 'L '; [ -s c ] && printf 's '; [ -x c ] || printf x)"
dd if=/dev/zero of=sparse bs=1 count=1 seek=1048575 2>/dev/null
check "a hole reads as zeros" "1048576 0" "$(stat -c %s sparse) $(tr -d '\000' <sparse | wc -c | tr -d ' ')"
dd if=numbers of=patched bs=1 skip=2 count=5 2>/dev/null
check "dd skip" "2 3 4" "$(xargs <patched)"
check "unlinked file stays readable" "still here" "$(exec 5<<EOF
still here
EOF
cat <&5)"

section "directories"
mkdir -p tree/x/y/z tree/w
echo 1 >tree/x/1.txt
echo 22 >tree/x/y/2.txt
echo 333 >tree/x/y/z/3.dat
check "find by name" "tree/x/1.txt tree/x/y/2.txt" "$(find tree -name '*.txt' | sort | xargs)"
check "find by type and depth" 4 "$(find tree -mindepth 1 -type d | wc -l | tr -d ' ')"
check "glob" "tree/w tree/x" "$(echo tree/*)"
check_status "rmdir of a full directory" 1 rmdir tree/x
mv tree/x/y tree/w/moved
check "moved tree" "22" "$(cat tree/w/moved/2.txt)"
check "relative path upwards" "1" "$(cd tree/w/moved/z && cat ../../../x/1.txt)"
cp -r tree copy
check "copied tree is the same" "" "$(diff -r tree copy 2>&1)"
check "pwd after cd through a symlink" "$work/link $work/tree/w" "$(ln -s tree/w link; cd link && echo "$PWD $(pwd -P)")"
rm -r copy
[ -e copy ]
check "removed tree" 1 $?
i=0
mkdir many
while [ $i -lt 100 ]; do
    echo $i >many/file.$i
    i=$((i + 1))
done
check "a hundred files" "100 4950" "$(ls many | wc -l | tr -d ' ') $(cat many/* | awk '{s += $1} END {print s}')"

section "text tools"
cat >table <<'EOF'
pear:3:green
apple:10:red
plum:7:blue
apple:2:green
EOF
check "sort by number" "apple plum pear apple" "$(sort -t : -k 2,2nr table | cut -d : -f 1 | xargs)"
check "sort unique" 3 "$(cut -d : -f 1 table | sort -u | wc -l | tr -d ' ')"
check "grep count and invert" "2 2" "$(grep -c apple table) $(grep -vc apple table)"
check "grep expression" "pear plum" "$(grep -E '^p(ear|lum):[0-9]:' table | cut -d : -f 1 | xargs)"
check "sed substitutes" "p-3 a-10 p-7 a-2" "$(sed -e 's/^\(.\)[a-z]*:\([0-9]*\):.*/\1-\2/' table | xargs)"
check "sed addresses" "apple:10:red plum:7:blue" "$(sed -n '2,3p' table | xargs)"
check "awk sums by key" "apple=12 pear=3 plum=7" "$(awk -F : '{s[$1] += $2} END {for (k in s) print k "=" s[k]}' table | sort | xargs)"
check "tr ranges" "HELLO" "$(echo hello | tr 'a-z' 'A-Z')"
check "head and tail" "3 38" "$(head -n 3 numbers | tail -n 1) $(tail -n 3 numbers | head -n 1)"
check "printf" "00042|  x|ff|101" "$(printf '%05d|%3s|%x|%o' 42 x 255 65)"
check "od of binary data" "00 ff 7f 0a" "$(printf '\000\377\177\n' | od -An -tx1 | xargs)"
check "binary data through cat" 4 "$(printf '\000\377\000\n' | cat | cat | wc -c | tr -d ' ')"
check "tee" "t t" "$(echo t | tee tee.out | cat) $(cat tee.out)"
check "date in a fixed form" "2001-02-03" "$(date -u -d @981173106 +%Y-%m-%d)"

section "large data"
check "200 KB through a pipe" "d9daf97361ffa42e441bc20d64f0f973" \
    "$(dd if=/dev/zero bs=1024 count=200 2>/dev/null | tr '\000' 'x' | md5sum | cut -d ' ' -f 1)"
seq 1 20000 >big
check "checksum of a file" "$(md5sum <big)" "$(cat big | cat | md5sum)"
check "sort of 20000 lines" "9999 9998 9997" "$(sort -r big | head -n 3 | xargs)"
check "gzip round trip" "same" "$(gzip -c big >big.gz && gzip -dc big.gz | cmp - big && echo same)"
tar -cf tree.tar tree
mkdir unpacked
tar -xf tree.tar -C unpacked
check "tar round trip" "" "$(diff -r tree unpacked/tree 2>&1)"
check "tar through gzip" 2 "$(tar -cf - tree | gzip | gzip -d | tar -tf - | grep -c '\.txt$')"

section "fifos"
mkfifo pipe
check "type" p "$([ -p pipe ] && echo p)"
(while read -r line; do echo "got $line"; done <pipe >fifo.out) &
{ echo one; echo two; echo three; } >pipe
wait
check "reader and writer" "got one got two got three" "$(xargs <fifo.out)"
mkfifo request answer
(read -r n <request; echo $((n * n)) >answer) &
echo 12 >request
read -r square <answer
wait
check "question and answer" 144 "$square"

section "descriptors"
exec 3>fd.out 4<numbers
echo three >&3
read -r x <&4
read -r y <&4
exec 3>&- 4<&-
check "exec with descriptors" "three 1 2" "$(cat fd.out) $x $y"
check "closed descriptor" refused "$( (echo x >&3) 2>/dev/null || echo refused)"
check "standard error joined" "out err" "$(sh -c 'echo out; echo err >&2' 2>&1 | xargs)"
check "swapped streams" "err" "$( (sh -c 'echo out; echo err >&2' 3>&1 1>/dev/null 2>&3) )"
exec 6<>both
echo both >&6
exec 6>&-
check "read and write" both "$(cat both)"

section "limits"
check "descriptor limit" 16 "$(ulimit -n 16; ulimit -n)"
check "too many descriptors" 1 "$( (ulimit -n 5; exec 3<numbers 4<numbers 5<numbers) 2>/dev/null; [ $? -ne 0 ] && echo 1)"
(ulimit -f 1; exec dd if=/dev/zero of=limited bs=4096 count=4 2>/dev/null) 2>/dev/null
check "file size limit kills" 153 $?
check "and cuts the file" yes "$([ "$(wc -c <limited)" -le 1024 ] && echo yes)"
(trap '' XFSZ; ulimit -f 1; dd if=/dev/zero of=limited2 bs=4096 count=4 2>/dev/null)
check "or is an error" 1 $?

section "proc and identity"
check "who" "0 0" "$(id -u) $(id -g)"
check "own command line" "cat /proc/self/cmdline " "$(cat /proc/self/cmdline | tr '\000' ' ')"
check "own name" "cat" "$(cat /proc/self/comm)"
check "state of a reader" "R (running)" "$(sed -n 's/^State:[[:space:]]*//p' /proc/self/status)"
check "own descriptors" "0 1 2" "$(sh -c 'cd /proc/$$/fd && echo [0-2]' 2>/dev/null)"
check "working directory" "$work" "$(readlink /proc/self/cwd)"
check "environment" "VALUE=x y" "$(env -i "VALUE=x y" env)"
check "environment of a child" "inherited" "$(INHERITED=inherited sh -c 'echo $INHERITED')"
check "kernel name" "Linux" "$(uname -s)"
check "mounts name proc" proc "$(awk '$2 == "/proc" {print $3}' /proc/self/mounts | tail -n 1)"
check "parent of a child" yes "$(sh -c '[ "$PPID" -gt 0 ] && echo yes')"
check "writing to a full device" 1 "$(if [ -c /dev/full ]; then (echo x >/dev/full) 2>/dev/null || echo 1; else echo 1; fi)"

section "the end"
cd /
rm -rf "$work"
[ -e "$work" ]
check "cleaned up" 1 $?
if [ $failed -ne 0 ]; then
    echo "script: $failed of $checks checks FAILED"
    exit 1
fi
echo "script: $checks checks ok"
