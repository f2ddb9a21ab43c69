/* The machine's network device, configured as the host's NETWORK frame says.
 * The host sends it before the job or in a new clone. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { NETWORK_SIZE = 24, MAX_NAMESERVERS = 3 };

static void network_ioctl(int fd, unsigned long operation, void *request, const char *name)
{
    if (ioctl(fd, operation, request) < 0)
        die(name);
}

static struct sockaddr socket_address(const uint8_t address[4])
{
    struct sockaddr_in in = {.sin_family = AF_INET};
    struct sockaddr out;
    memcpy(&in.sin_addr, address, 4);
    memcpy(&out, &in, sizeof out);
    return out;
}

static struct ifreq device_request(void)
{
    struct ifreq request;
    memset(&request, 0, sizeof request);
    memcpy(request.ifr_name, "eth0", 5);
    return request;
}

static void bring_up_device(int fd, const uint8_t *address, unsigned prefix, int mtu)
{
    struct ifreq request = device_request();
    request.ifr_mtu = mtu;
    network_ioctl(fd, SIOCSIFMTU, &request, "eth0: MTU");
    request = device_request();
    request.ifr_addr = socket_address(address);
    network_ioctl(fd, SIOCSIFADDR, &request, "eth0: address");
    uint32_t bits = prefix ? 0xffffffffu << (32 - prefix) : 0;
    uint8_t mask[4] = {(uint8_t)(bits >> 24), (uint8_t)(bits >> 16), (uint8_t)(bits >> 8), (uint8_t)bits};
    request = device_request();
    request.ifr_netmask = socket_address(mask);
    network_ioctl(fd, SIOCSIFNETMASK, &request, "eth0: netmask");
    request = device_request();
    network_ioctl(fd, SIOCGIFFLAGS, &request, "eth0");
    request.ifr_flags |= IFF_UP;
    network_ioctl(fd, SIOCSIFFLAGS, &request, "eth0: up");
}

static void add_default_route(int fd, const uint8_t *gateway)
{
    static const uint8_t any[4];
    struct rtentry route;
    memset(&route, 0, sizeof route);
    route.rt_dst = socket_address(any);
    route.rt_genmask = socket_address(any);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = RTF_UP | RTF_GATEWAY;
    if (ioctl(fd, SIOCADDRT, &route) < 0 && errno != EEXIST) /* a clone has its template's route */
        die("eth0: route");
}

/* Replace the image's resolv.conf, which may be a link to anywhere. */
static void write_resolv_conf(const uint8_t *nameservers, unsigned count)
{
    char text[160];
    size_t length = 0;
    for (unsigned i = 0; i < count; i++)
        length += (size_t)snprintf(text + length, sizeof text - length, "nameserver %u.%u.%u.%u\n", nameservers[4 * i],
                                   nameservers[4 * i + 1], nameservers[4 * i + 2], nameservers[4 * i + 3]);
    cleanup_close int etc = open_below("/newroot", "/etc", true);
    if (etc < 0 || (unlinkat(etc, "resolv.conf", 0) < 0 && errno != ENOENT))
        die("/etc/resolv.conf");
    cleanup_close int fd = openat(etc, "resolv.conf", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0 || !write_fully(fd, text, length))
        die("/etc/resolv.conf");
}

static void disable_ipv6(const char *path)
{
    if (!write_file(path, "1") && errno != ENOENT) /* a kernel without IPv6 */
        die(path);
}

/* NETWORK: address[4] gateway[4] mtu u16, prefix u8, count u8, three name servers. Only PID 1 applies it. */
void configure_network(const uint8_t *payload, size_t length)
{
    if ((agent.phase != READY && agent.phase != IN_SESSION) || length != NETWORK_SIZE || payload[10] > 32 || payload[11] > MAX_NAMESERVERS) {
        errno = EPROTO;
        die("unexpected NETWORK from host");
    }
    if (!agent.is_init)
        return;
    disable_ipv6("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    disable_ipv6("/proc/sys/net/ipv6/conf/default/disable_ipv6");
    cleanup_close int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("network socket");
    bring_up_device(fd, payload, payload[10], payload[8] | payload[9] << 8);
    add_default_route(fd, payload + 4);
    write_resolv_conf(payload + 12, payload[11]);
}
