/* Process exits, which the kernel reports by taskstats before it unmaps a process's memory.
 * The reaper reports every exit too; this only makes the job's end known earlier. */
#include "agent.h"

#include <fcntl.h>
#include <linux/acct.h>
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <linux/taskstats.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Send a generic netlink message (linux/genetlink.h) with one attribute; return false when that fails. */
static bool send_netlink(uint16_t family, uint8_t command, uint8_t version, uint16_t attribute, const char *text)
{
    struct {
        struct nlmsghdr header;
        struct genlmsghdr generic;
        struct nlattr attribute;
        char text[64];
    } message = {0};
    size_t length = strlen(text) + 1;
    if (length > sizeof message.text)
        return false;
    memcpy(message.text, text, length);
    message.attribute = (struct nlattr){(uint16_t)(NLA_HDRLEN + length), attribute};
    message.generic = (struct genlmsghdr){command, version, 0};
    message.header.nlmsg_len = (uint32_t)(NLMSG_HDRLEN + GENL_HDRLEN + NLA_ALIGN(message.attribute.nla_len));
    message.header.nlmsg_type = family;
    message.header.nlmsg_flags = NLM_F_REQUEST;
    return send(agent.exits_fd, &message, message.header.nlmsg_len, 0) == (ssize_t)message.header.nlmsg_len;
}

/* Return the payload of the first attribute of that type, or NULL; set `length` to its size. */
static const uint8_t *find_attribute(const uint8_t *at, size_t size, uint16_t type, size_t *length)
{
    struct nlattr head;
    for (size_t step; size >= sizeof head; at += step, size -= step) {
        memcpy(&head, at, sizeof head);
        if (head.nla_len < sizeof head || head.nla_len > size)
            return NULL;
        if ((head.nla_type & NLA_TYPE_MASK) == type) {
            *length = head.nla_len - NLA_HDRLEN;
            return at + NLA_HDRLEN;
        }
        step = NLA_ALIGN((size_t)head.nla_len);
        if (step > size)
            return NULL;
    }
    return NULL;
}

/* Return the attributes of the kernel's next message; NULL when there is none. */
static const uint8_t *receive_netlink(size_t *size)
{
    static uint8_t buffer[4096];
    struct nlmsghdr header;
    struct sockaddr_nl from;
    socklen_t from_length = sizeof from;
    ssize_t n = recvfrom(agent.exits_fd, buffer, sizeof buffer, 0, (struct sockaddr *)&from, &from_length);
    if (n < (ssize_t)(NLMSG_HDRLEN + GENL_HDRLEN) || from.nl_pid != 0)
        return NULL;
    memcpy(&header, buffer, sizeof header);
    if (header.nlmsg_type == NLMSG_ERROR || header.nlmsg_len > (size_t)n)
        return NULL;
    *size = header.nlmsg_len - NLMSG_HDRLEN - GENL_HDRLEN;
    return buffer + NLMSG_HDRLEN + GENL_HDRLEN;
}

/* Subscribe to process exits (Documentation/accounting/taskstats.rst). Without them only the reaper reports a job's
 * end, later by the time that the kernel takes to unmap an interpreter. */
void subscribe_exits(void)
{
    char cpus[64] = "";
    size_t size, length;
    uint16_t family;
    if (!agent.is_init || agent.exits_fd >= 0)
        return;
    cleanup_close int fd = open("/sys/devices/system/cpu/possible", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, cpus, sizeof cpus - 1);
    agent.exits_fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
    const uint8_t *at = NULL;
    if (n > 0 && agent.exits_fd >= 0 &&
        send_netlink(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, 1, CTRL_ATTR_FAMILY_NAME, TASKSTATS_GENL_NAME) &&
        (at = receive_netlink(&size)) && (at = find_attribute(at, size, CTRL_ATTR_FAMILY_ID, &length)) &&
        length == sizeof family) {
        memcpy(&family, at, sizeof family);
        cpus[strcspn(cpus, "\n")] = 0;
        set_nonblocking(agent.exits_fd);
        if (send_netlink(family, TASKSTATS_CMD_GET, TASKSTATS_GENL_VERSION, TASKSTATS_CMD_ATTR_REGISTER_CPUMASK, cpus))
            return;
    }
    close_fd(&agent.exits_fd);
}

/* The main process has exited when its last thread exits; this counts only if that is its first thread, which has the
 * process's exit code. A lost message (the socket's buffer is full) does no harm: the reaper reports the exit too. */
void read_exits(void)
{
    struct taskstats exit = {0};
    size_t size, length, min_length = offsetof(struct taskstats, ac_tgid) + sizeof exit.ac_tgid;
    const uint8_t *at = receive_netlink(&size);
    if (!at || !(at = find_attribute(at, size, TASKSTATS_TYPE_AGGR_PID, &length)) ||
        !(at = find_attribute(at, length, TASKSTATS_TYPE_STATS, &length)) || length < min_length)
        return;
    memcpy(&exit, at, length < sizeof exit ? length : sizeof exit); /* it grows with the kernel's version */
    if (agent.phase != RUNNING || !agent.job.main || exit.ac_pid != (uint32_t)agent.job.main ||
        exit.ac_tgid != exit.ac_pid || !(exit.ac_flag & AGROUP) || agent.has_status)
        return;
    agent.main_exiting = agent.has_status = true;
    agent.wait_status = (int)exit.ac_exitcode;
    agent.ended_us = now_us();
}
