/* Pseudo-terminals, and descriptors that are passed between the agent and the reaper. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_PASSED = 4, TTY_GROUP = 5 };

/* In the reaper: open a terminal for the command's user. Returns the agent's end and sets `peer` to the command's; -1
 * with errno. The path is a mount point of the sandbox, which no process in it can replace. */
int open_terminal(const struct session_request *request, bool isolated, int *peer)
{
    int unlock = 0;
    cleanup_close int ours = open(isolated ? "/dev/pts/ptmx" : "/dev/ptmx",
                                  O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    if (ours < 0 || ioctl(ours, TIOCSPTLCK, &unlock) < 0)
        return -1;
    cleanup_close int theirs = ioctl(ours, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (theirs < 0 || (isolated && (fchown(theirs, request->uid, TTY_GROUP) < 0 || fchmod(theirs, 0620) < 0)))
        return -1;
    resize_terminal(ours, request->columns, request->rows);
    *peer = release_fd(&theirs);
    return release_fd(&ours);
}

void resize_terminal(int terminal, uint16_t columns, uint16_t rows)
{
    struct winsize size = {.ws_col = columns, .ws_row = rows};
    if (terminal >= 0 && ioctl(terminal, TIOCSWINSZ, &size) < 0)
        log_line("terminal size: %s", strerror(errno));
}

bool send_with_descriptors(int socket, const void *data, size_t size, const int *fds, size_t count)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(MAX_PASSED * sizeof(int))] = {0};
    struct iovec piece = {(void *)(uintptr_t)data, size};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    if (count > 0) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(head), fds, count * sizeof(int));
    }
    ssize_t n;
    while ((n = sendmsg(socket, &message, MSG_NOSIGNAL)) < 0 && errno == EINTR)
        ;
    return n == (ssize_t)size; /* a message this small is sent whole */
}

/* Receive `size` bytes and at most `*count` descriptors (at most MAX_PASSED); sets `*count` to their number. */
ssize_t receive_with_descriptors(int socket, void *data, size_t size, int *fds, size_t *count)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(MAX_PASSED * sizeof(int))];
    struct iovec piece = {data, size};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    size_t room = *count;
    ssize_t n;
    *count = 0;
    while ((n = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_WAITALL)) < 0 && errno == EINTR)
        ;
    struct cmsghdr *head = n > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
        size_t passed = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        *count = passed < room ? passed : room;
        memcpy(fds, CMSG_DATA(head), *count * sizeof(int));
    }
    return n;
}
