/* Fork and execute: user, descriptors, limits, exec.
 * The parent learns of every error before exec by its errno. */
#include "agent.h"

#include "file_operation.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Reset signals that a job's process must not inherit from the agent as blocked or ignored. */
static bool reset_signals(void)
{
    sigset_t none;
    return sigemptyset(&none) == 0 && signal(SIGPIPE, SIG_DFL) != SIG_ERR && signal(SIGINT, SIG_DFL) != SIG_ERR &&
           signal(SIGQUIT, SIG_DFL) != SIG_ERR && sigprocmask(SIG_SETMASK, &none, NULL) == 0;
}

/* Put a prefork program's descriptors at the numbers that it expects; exec closes all others. */
static bool pass_descriptors(const struct child *child)
{
    /* One may occupy the other's number: move both above them first. */
    int command = fcntl(child->command_fd, F_DUPFD_CLOEXEC, 10);
    int program = fcntl(child->program_fd, F_DUPFD_CLOEXEC, 10);
    return command >= 0 && program >= 0 && dup2(command, COMMAND_FD) == COMMAND_FD &&
           dup2(program, PROGRAM_FD) == PROGRAM_FD;
}

/* A file operation runs in this process, with the privileges that an exec would leave, and no descriptor of the
 * reaper's: the sandbox's processes may have the same user. */
static _Noreturn void run_as_user(const struct command *command)
{
    int none[] = {-1};
    if (!limit_to_bounding_set() || !close_all_but(none, 1))
        _exit(errno);
    _exit(run_file_operation(command->argv));
}

/* As execvpe(3), which tries every folder of PATH: each execve(2) that fails costs the kernel an address space. */
static void exec_program(char **argv, char **envp)
{
    char file[4096];
    environ = envp;
    const char *at = strchr(argv[0], '/') ? NULL : getenv("PATH");
    while (at && *at) {
        size_t length = strcspn(at, ":");
        int size = snprintf(file, sizeof file, "%.*s/%s", (int)length, at, argv[0]);
        if (length > 0 && size < (int)sizeof file && access(file, X_OK) == 0)
            execve(file, argv, envp);
        at += length + (at[length] == ':');
    }
    execvpe(argv[0], argv, envp); /* a path, or nothing was found: errno says why */
}

static _Noreturn void exec_command(const struct child *child, const struct command *command, int error_fd)
{
    struct rlimit no_core = {0, 0};
    bool ok = setsid() >= 0;
    for (int fd = 0; ok && fd < 3; fd++)
        ok = dup2(child->stdio[fd], fd) == fd;
    ok = ok && (!child->terminal || ioctl(0, TIOCSCTTY, 0) == 0);
    if (ok && child->isolated)
        /* A waiting prefork program is the OOM killer's first choice when the job needs memory. */
        ok = write(child->cgroup_fd, "0", 1) == 1 &&
             write_file("/proc/self/oom_score_adj", child->command_fd >= 0 ? "1000" : "0") &&
             syscall(SYS_setgroups, 0, NULL) == 0 && setgid(child->gid) == 0 && setuid(child->uid) == 0 &&
             prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
    /* After the change of user, which clears the death signal. */
    ok = ok && prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 && setrlimit(RLIMIT_CORE, &no_core) == 0;
    ok = ok && chdir(command->folder) == 0 && reset_signals() && (!child->fixed_layout || request_layout());
    if (ok && child->command_fd >= 0) {
        if (error_fd <= PROGRAM_FD)
            error_fd = fcntl(error_fd, F_DUPFD_CLOEXEC, 10);
        ok = error_fd >= 0 && pass_descriptors(child);
    }
    if (ok)
        umask(022);
    if (ok && child->files)
        run_as_user(command);
    if (ok)
        exec_program(command->argv, command->envp);
    int error = errno;
    if (write(error_fd, &error, sizeof error) != sizeof error)
        _exit(126);
    _exit(127);
}

/* Fork and execute; return the child's pid, or a negative errno. */
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
    /* The pipe closes without data when exec succeeds. */
    if (child > 0 && read(failed[0], &error, sizeof error) != sizeof error)
        error = 0;
    close(failed[0]);
    if (child > 0 && !error && how->fixed_layout)
        error = resume_traced(child, &reaped);
    if (child > 0 && error && !reaped) {
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    return error ? -error : child;
}
