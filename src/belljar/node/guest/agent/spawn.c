/* From a fork to the job's command: user, descriptors, limits, exec. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* What a job's process must not inherit from the agent: blocked and ignored signals. */
static bool reset_signals(void)
{
    sigset_t none;
    return sigemptyset(&none) == 0 && signal(SIGPIPE, SIG_DFL) != SIG_ERR && sigprocmask(SIG_SETMASK, &none, NULL) == 0;
}

/* Descriptors of a prefork program at the numbers that it expects; all others are closed by its exec. */
static bool hand_over(const struct child *child)
{
    /* Both may be in each other's way: first to places above them. */
    int order = fcntl(child->order_fd, F_DUPFD_CLOEXEC, 10), program = fcntl(child->program_fd, F_DUPFD_CLOEXEC, 10);
    return order >= 0 && program >= 0 && dup2(order, ORDER_FD) == ORDER_FD && dup2(program, PROGRAM_FD) == PROGRAM_FD;
}

static _Noreturn void exec_command(const struct child *child, const struct command *command, int error_fd)
{
    struct rlimit no_core = {0, 0};
    bool ok = setsid() >= 0;
    for (int fd = 0; ok && fd < 3; fd++)
        ok = dup2(child->stdio[fd], fd) == fd;
    if (ok && child->isolated)
        /* What only waits is the first to go when the job wants the memory. */
        ok = write(child->cgroup_fd, "0", 1) == 1 &&
             write_file("/proc/self/oom_score_adj", child->order_fd >= 0 ? "1000" : "0") &&
             syscall(SYS_setgroups, 0, NULL) == 0 && setgid(child->gid) == 0 && setuid(child->uid) == 0 &&
             prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
    /* After the change of user, which clears it. */
    ok = ok && prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 && setrlimit(RLIMIT_CORE, &no_core) == 0;
    ok = ok && chdir(command->folder) == 0 && reset_signals() && (!child->laid_out || ask_for_layout());
    if (ok && child->order_fd >= 0) {
        if (error_fd <= PROGRAM_FD)
            error_fd = fcntl(error_fd, F_DUPFD_CLOEXEC, 10);
        ok = error_fd >= 0 && hand_over(child);
    }
    if (ok) {
        umask(022);
        environ = command->envp;
        execvpe(command->argv[0], command->argv, command->envp);
    }
    int error = errno;
    if (write(error_fd, &error, sizeof error) != sizeof error)
        _exit(126);
    _exit(127);
}

/* Fork and execute; returns the child's pid, or minus the errno that kept it from running. */
pid_t spawn(const struct child *how, const struct command *command)
{
    int failed[2], error = 0;
    bool reaped = false;
    if (pipe2(failed, O_CLOEXEC) < 0)
        return -errno;
    pid_t child = fork();
    if (child == 0)
        exec_command(how, command, failed[1]);
    if (child < 0)
        error = errno;
    close(failed[1]);
    /* The pipe's end without a word is the exec's success. */
    if (child > 0 && read(failed[0], &error, sizeof error) != sizeof error)
        error = 0;
    close(failed[0]);
    if (child > 0 && !error && how->laid_out)
        error = resume_traced(child, &reaped);
    if (child > 0 && error && !reaped) {
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    return error ? -error : child;
}
