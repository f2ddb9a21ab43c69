/* Prints whether the agent finds a vsock device in this machine, and the port on which it would listen. */
#include "agent.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include <linux/vm_sockets.h>

int main(void)
{
    agent_init();
    int listener = open_listener();
    if (listener < 0) {
        printf("none\n");
        return 0;
    }
    struct sockaddr_vm address;
    socklen_t length = sizeof address;
    int listening = 0;
    socklen_t size = sizeof listening;
    if (getsockname(listener, (struct sockaddr *)&address, &length) < 0 ||
        getsockopt(listener, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) < 0)
        return 1;
    struct sockaddr_vm host = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST};
    struct sockaddr_vm job = {.svm_family = AF_VSOCK, .svm_cid = 3};
    printf("port %u listening %d host %d job %d\n", address.svm_port, listening, is_host(&host), is_host(&job));
    return 0;
}
