/*
 * belljar's agent: PID 1 of every machine. It runs one job for one host, over one byte stream, and never a second job.
 *
 * As /init of the initramfs it loads modules and mounts the root filesystem under a writable layer. Then it runs the
 * job's command in new namespaces, forwards its streams, reports its exit and sends its artifacts. It ends the machine
 * when its stream ends or the host is silent.
 *
 * Before a machine is frozen and cloned, the agent prepares processes that wait in their namespaces for the job, among
 * them interpreters that have already started (prefork programs). A clone gets its identity before anything else runs
 * in it. A warm-up runs a command of belljar's own in the template and leaves nothing behind.
 *
 * Each file covers one kernel interface or one duty; agent.h lists them. dispatch.c decides which frame is handled
 * where, reaper.c runs in a process of its own. docs/protocol.md describes each frame. The agent's memory is static:
 * nothing is allocated once the machine has booted. An error that the agent cannot handle ends the machine.
 *
 * For tests only: with `--fd N PREFORK_FOLDER` the agent is an ordinary process that serves descriptor N, with
 * `--listen N PREFORK_FOLDER` one that serves connections to the listening socket N.
 */
#include "agent.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    agent_init();
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
        log_line("usage: belljar-agent as PID 1 of a machine; in tests --fd N FOLDER or --listen N FOLDER");
        return 2;
    }
    start_serving();
    for (;;)
        serve_once(-1);
}
