/*
 * belljar's agent: PID 1 of every machine.
 *
 * As /init of the initramfs it loads modules, mounts the root filesystem and a writable layer over it, then serves one
 * host over one byte stream: it runs one entrypoint in namespaces of its own, carries its streams, says how it ended,
 * hands over artifacts, and resets the machine when told to or when the host falls silent. It never runs two jobs.
 *
 * A machine that is to be frozen and cloned is got ready first: processes are prepared in their namespaces, interpreters
 * among them that have started already (prefork), and wait for the job. A clone is told who it is before anything else
 * runs in it, and may rehearse: run a command of belljar's own, and forget it.
 *
 * Each file covers one interface of the kernel or one duty; agent.h names them with what they offer. frames.c says which
 * frame leads where, reaper.c runs in a process of its own, wire.py is the other end and says what each frame means. The
 * agent's memory is static: nothing is allocated once the machine has booted. What cannot go on ends the machine.
 *
 * With `--fd N PREFORK_FOLDER` it is an ordinary process that serves descriptor N, with `--listen N` instead one that
 * serves whoever comes to it, for tests and for nothing else.
 */
#include "agent.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    start_empty();
    agent.is_init = getpid() == 1;
    if (agent.is_init)
        boot();
    else if (argc == 4 && strcmp(argv[1], "--fd") == 0) {
        agent.port = atoi(argv[2]);
        agent.prefork_folder = argv[3];
    } else if (argc == 4 && strcmp(argv[1], "--listen") == 0) {
        agent.listener = atoi(argv[2]);
        agent.prefork_folder = argv[3];
        accept_host();
    } else {
        say("belljar-agent: runs as PID 1 of a machine, or with --fd N FOLDER or --listen N FOLDER in tests");
        return 2;
    }
    begin_serving();
    for (;;)
        serve_once(-1);
}
