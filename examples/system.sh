#!/bin/sh
# Print what a job sees of its machine: its own kernel, memory and processes, and no network.
echo "== uname -a"
uname -a
echo "== free -m"
free -m
echo "== ps"
ps -ef
echo "== df -h /"
df -h /
echo "== ls /sys/class/net"
ls /sys/class/net
