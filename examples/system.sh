#!/bin/sh
# What a job sees of its machine: a kernel, memory and processes of its own, and no network.
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
