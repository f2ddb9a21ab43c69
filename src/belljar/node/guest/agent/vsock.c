/* The vsock port that the agent listens on when the machine has no virtio-serial port.
 * Only the host may connect: a job's process could too. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h> /* after sys/socket.h, whose types it uses */

enum { VSOCK_PORT = 1024 };

/* Open a socket that listens for the host; return -1 while the machine has no vsock device. A socket can be created
 * wherever the module is loaded, so check whether the machine has a context ID of its own. */
int open_listener(void)
{
    unsigned cid = VMADDR_CID_ANY;
    cleanup_close int device = open("/dev/vsock", O_RDONLY | O_CLOEXEC);
    if (device < 0)
        return -1;
    if (ioctl(device, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid) < 0)
        cid = VMADDR_CID_ANY;
    if (cid == VMADDR_CID_ANY)
        return -1;
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = VSOCK_PORT};
    int listener = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (const struct sockaddr *)&address, sizeof address) < 0 ||
        listen(listener, 1) < 0)
        die("vsock");
    return listener;
}

bool is_host(const struct sockaddr_vm *peer)
{
    return peer->svm_family != AF_VSOCK || peer->svm_cid == VMADDR_CID_HOST; /* other families: only in tests */
}

/* Wait for the host to connect; discard buffered bytes, which belonged to the previous stream. */
void accept_host(void)
{
    struct sockaddr_vm peer;
    socklen_t length;
    close_fd(&agent.port);
    do {
        close_fd(&agent.port);
        length = sizeof peer;
        memset(&peer, 0, sizeof peer);
        agent.port = accept4(agent.listener, (struct sockaddr *)&peer, &length, SOCK_CLOEXEC);
        if (agent.port < 0 && errno != EINTR && errno != ECONNABORTED)
            die("accept");
    } while (agent.port < 0 || !is_host(&peer));
    set_nonblocking(agent.port);
    agent.in_len = agent.out_start = agent.out_len = 0;
    agent.last_received_ms = now_us() / 1000;
}
