/* Counts the flows of one slot at its devices, in the kernel: one program for each place that a packet passes.
 *
 *   the machine -> tap0 [from_guest] -> the slot's rules -> up0 [to_uplink] -> the host
 *   the machine <- tap0 [to_guest]   <- the slot's rules <- up0             <- the host
 *
 * A packet that leaves by up0 was let through; what only from_guest saw was refused, dropped over a limit, or was for
 * the gateway itself. Every byte is hostile. No packet is changed, delayed or dropped here, and nothing of a packet is
 * kept but its numbers: the first payload of a connection goes to the host once, which takes a name from it.
 *
 * It reads only structs of the kernel's stable interface, so it needs no types of the running kernel.
 * Sources: bpf-helpers(7), tc-bpf(8), linux/bpf.h; RFC 791, 792, 793, 768.
 */

#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
/* The form in which libbpf reads a map's definition from the object's types. */
#define MAP_NUMBER(name, value) int(*name)[value]
#define MAP_TYPE(name, type) type *name

static void *(*const lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*const update)(void *map, const void *key, const void *value, __u64 flags) =
    (void *)BPF_FUNC_map_update_elem;
static long (*const delete)(void *map, const void *key) = (void *)BPF_FUNC_map_delete_elem;
static __u64 (*const now_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static long (*const load)(const struct __sk_buff *skb, __u32 offset, void *to, __u32 bytes) =
    (void *)BPF_FUNC_skb_load_bytes;
static void *(*const reserve)(void *ring, __u64 bytes, __u64 flags) = (void *)BPF_FUNC_ringbuf_reserve;
static void (*const submit)(void *data, __u64 flags) = (void *)BPF_FUNC_ringbuf_submit;
static void (*const discard)(void *data, __u64 flags) = (void *)BPF_FUNC_ringbuf_discard;

enum {
    CONTINUE = -1, /* TC_ACT_UNSPEC: to the next filter, as if this one were not here */
    MAX_FLOWS = 4096,
    MAX_ATTEMPTS = 1024,
    RING_BYTES = 128 * 1024,
    MAX_PAYLOAD_BYTES = 1536, /* a whole segment: a TLS ClientHello has its server name in the first one */
    TCP = 6,
    UDP = 17,
    ICMP = 1,
    FRAGMENT_OFFSET = 0x1fff,
    ECHO_REPLY = 0,
    ECHO_REQUEST = 8,
};

/* linux/icmp.h needs the headers of a C library. */
struct icmp_header {
    __u8 type;
    __u8 code;
    __u16 checksum;
    __u16 identifier;
    __u16 sequence;
};

/* Addresses and ports are in network byte order. */
struct flow_key {
    __u32 address;
    __u16 port;
    __u16 guest_port; /* for an ICMP echo, its identifier */
    __u32 protocol;
};

struct flow {
    __u64 first_ns;
    __u64 last_ns;
    __u64 bytes_out; /* of payload: the same whether the kernel merged or split segments on the way */
    __u64 bytes_in;
    __u64 packets_out;
    __u64 packets_in;
    __u32 flags_out; /* all TCP flags that were seen */
    __u32 flags_in;
    __u32 inspected; /* whether its first payload was taken */
    __u32 reserved;
};

struct first_payload {
    struct flow_key key;
    __u32 length;
    __u8 data[MAX_PAYLOAD_BYTES];
};

struct totals {
    __u64 malformed;
    __u64 ipv6;
    __u64 lost_names; /* first payloads that found the ring full */
    __u64 lost_packets; /* of flows that found their map full */
    __u64 lost_bytes;
    __u64 attempt_flows; /* all that from_guest saw and to_uplink did not */
    __u64 attempt_packets;
    __u64 attempt_bytes;
};

/* Flows that were let through. Not an LRU map, which would forget flows and their bytes without a trace. */
struct {
    MAP_NUMBER(type, BPF_MAP_TYPE_HASH);
    MAP_NUMBER(max_entries, MAX_FLOWS);
    MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
    MAP_TYPE(key, struct flow_key);
    MAP_TYPE(value, struct flow);
} flows SEC(".maps");

/* What was not let through: the newest, however many there are; `totals` counts them all. */
struct {
    MAP_NUMBER(type, BPF_MAP_TYPE_LRU_HASH);
    MAP_NUMBER(max_entries, MAX_ATTEMPTS);
    MAP_TYPE(key, struct flow_key);
    MAP_TYPE(value, struct flow);
} attempts SEC(".maps");

struct {
    MAP_NUMBER(type, BPF_MAP_TYPE_RINGBUF);
    MAP_NUMBER(max_entries, RING_BYTES);
} payloads SEC(".maps");

struct {
    MAP_NUMBER(type, BPF_MAP_TYPE_ARRAY);
    MAP_NUMBER(max_entries, 1);
    MAP_TYPE(key, __u32);
    MAP_TYPE(value, struct totals);
} totals SEC(".maps");

/* The gateway's address, which the host sets. What is for the gateway itself is counted whatever the guest's port. */
struct {
    MAP_NUMBER(type, BPF_MAP_TYPE_ARRAY);
    MAP_NUMBER(max_entries, 1);
    MAP_TYPE(key, __u32);
    MAP_TYPE(value, __u32);
} gateway SEC(".maps");

struct packet {
    struct flow_key key;
    __u32 payload_offset;
    __u32 payload_bytes;
    __u32 packets;
    __u32 tcp_flags;
};

enum parsed { PARSED, IGNORED, IPV6, MALFORMED };

INLINE __u16 from_network(__u16 value) { return (__u16)(value >> 8 | value << 8); }

INLINE void add(__u64 *counter, __u64 value) { __sync_fetch_and_add(counter, value); }

/* Reads ports or their like, and returns the bytes of the header; 0 when there is no room for it. */
INLINE __u32 parse_transport(struct __sk_buff *skb, __u32 offset, bool outgoing, struct packet *packet) {
    __u32 protocol = packet->key.protocol;
    if (protocol == TCP) {
        struct tcphdr tcp;
        if (load(skb, offset, &tcp, sizeof(tcp)) < 0 || tcp.doff < 5) return 0;
        packet->key.port = outgoing ? tcp.dest : tcp.source;
        packet->key.guest_port = outgoing ? tcp.source : tcp.dest;
        packet->tcp_flags = ((__u8 *)&tcp)[13];
        return tcp.doff * 4;
    }
    if (protocol == UDP) {
        struct udphdr udp;
        if (load(skb, offset, &udp, sizeof(udp)) < 0) return 0;
        packet->key.port = outgoing ? udp.dest : udp.source;
        packet->key.guest_port = outgoing ? udp.source : udp.dest;
        return sizeof(udp);
    }
    struct icmp_header icmp;
    if (load(skb, offset, &icmp, sizeof(icmp)) < 0) return 0;
    if (icmp.type == ECHO_REQUEST || icmp.type == ECHO_REPLY) packet->key.guest_port = icmp.identifier;
    return sizeof(icmp);
}

INLINE enum parsed parse(struct __sk_buff *skb, bool outgoing, struct packet *packet) {
    if (skb->protocol == from_network(ETH_P_IPV6)) return IPV6;
    if (skb->protocol != from_network(ETH_P_IP)) return IGNORED;
    struct iphdr ip;
    if (load(skb, ETH_HLEN, &ip, sizeof(ip)) < 0 || ip.version != 4 || ip.ihl < 5) return MALFORMED;
    __u32 header_bytes = ip.ihl * 4, have_bytes = skb->len - ETH_HLEN;
    /* The header of a packet that is still to be split into segments may lack its length. */
    __u32 ip_bytes = skb->gso_size ? have_bytes : from_network(ip.tot_len);
    if (ip_bytes > have_bytes || ip_bytes < header_bytes) return MALFORMED;
    packet->key.address = outgoing ? ip.daddr : ip.saddr;
    packet->key.protocol = ip.protocol;
    bool has_ports = ip.protocol == TCP || ip.protocol == UDP || ip.protocol == ICMP;
    /* Only the first fragment has ports: the others are counted in a flow without. */
    if (has_ports && !(from_network(ip.frag_off) & FRAGMENT_OFFSET)) {
        __u32 transport_bytes = parse_transport(skb, ETH_HLEN + header_bytes, outgoing, packet);
        if (!transport_bytes || header_bytes + transport_bytes > ip_bytes) return MALFORMED;
        header_bytes += transport_bytes;
    }
    packet->payload_offset = ETH_HLEN + header_bytes;
    packet->payload_bytes = ip_bytes - header_bytes;
    packet->packets = 1;
    if (skb->gso_size && packet->payload_bytes > skb->gso_size)
        packet->packets = (packet->payload_bytes + skb->gso_size - 1) / skb->gso_size;
    return PARSED;
}

INLINE struct totals *get_totals(void) {
    __u32 zero = 0;
    return lookup(&totals, &zero);
}

/* Parses, and counts what is no IPv4. Returns whether the packet is to be counted. */
INLINE bool accept(struct __sk_buff *skb, bool outgoing, struct packet *packet) {
    enum parsed parsed = parse(skb, outgoing, packet);
    if (parsed == PARSED) {
        __u32 zero = 0, *address = lookup(&gateway, &zero);
        if (address && *address == packet->key.address) packet->key.guest_port = 0;
        return true;
    }
    struct totals *sums = get_totals();
    if (sums && parsed == IPV6) add(&sums->ipv6, 1);
    if (sums && parsed == MALFORMED) add(&sums->malformed, 1);
    return false;
}

INLINE void count_out(struct flow *flow, const struct packet *packet) {
    flow->last_ns = now_ns();
    add(&flow->packets_out, packet->packets);
    add(&flow->bytes_out, packet->payload_bytes);
    if (packet->tcp_flags & ~flow->flags_out) flow->flags_out |= packet->tcp_flags;
}

SEC("tc")
int from_guest(struct __sk_buff *skb) {
    struct packet packet = {};
    if (!accept(skb, true, &packet) || lookup(&flows, &packet.key)) return CONTINUE; /* to_uplink counts it */
    struct totals *sums = get_totals();
    if (sums) {
        add(&sums->attempt_packets, packet.packets);
        add(&sums->attempt_bytes, packet.payload_bytes);
    }
    struct flow *attempt = lookup(&attempts, &packet.key);
    if (!attempt) {
        struct flow fresh = {.first_ns = now_ns()};
        if (update(&attempts, &packet.key, &fresh, BPF_NOEXIST) == 0 && sums) add(&sums->attempt_flows, 1);
        attempt = lookup(&attempts, &packet.key);
    }
    if (attempt) count_out(attempt, &packet);
    return CONTINUE;
}

/* Returns the flow of a packet that was let through, created for the first one; NULL when the map is full. */
INLINE struct flow *get_flow(const struct packet *packet) {
    struct flow *flow = lookup(&flows, &packet->key);
    if (flow) return flow;
    struct flow *attempt = lookup(&attempts, &packet->key);
    struct flow fresh = {.first_ns = attempt ? attempt->first_ns : now_ns()};
    struct totals *sums = get_totals();
    if (attempt && sums) {
        add(&sums->attempt_flows, -1);
        add(&sums->attempt_packets, -attempt->packets_out);
        add(&sums->attempt_bytes, -attempt->bytes_out);
    }
    delete (&attempts, &packet->key);
    update(&flows, &packet->key, &fresh, BPF_NOEXIST);
    return lookup(&flows, &packet->key);
}

/* Copies the first payload of a connection for the host. A peer has answered by then, so that a flood of packets to
 * nowhere cannot fill the ring. */
INLINE void send_payload(struct __sk_buff *skb, struct flow *flow, const struct packet *packet) {
    __u32 bytes = packet->payload_bytes;
    flow->inspected = 1;
    struct first_payload *first = reserve(&payloads, sizeof(*first), 0);
    if (!first) {
        struct totals *sums = get_totals();
        if (sums) add(&sums->lost_names, 1);
        return;
    }
    if (bytes > MAX_PAYLOAD_BYTES) bytes = MAX_PAYLOAD_BYTES;
    first->key = packet->key;
    first->length = bytes;
    if (bytes == 0 || load(skb, packet->payload_offset, first->data, bytes) < 0) {
        discard(first, BPF_RB_NO_WAKEUP);
        return;
    }
    submit(first, BPF_RB_NO_WAKEUP); /* the host looks at intervals */
}

SEC("tc")
int to_uplink(struct __sk_buff *skb) {
    struct packet packet = {};
    if (!accept(skb, true, &packet)) return CONTINUE;
    struct flow *flow = get_flow(&packet);
    if (!flow) {
        struct totals *sums = get_totals();
        if (!sums) return CONTINUE;
        add(&sums->lost_packets, packet.packets);
        add(&sums->lost_bytes, packet.payload_bytes);
        return CONTINUE;
    }
    count_out(flow, &packet);
    if (packet.key.protocol == TCP && packet.payload_bytes && !flow->inspected && flow->packets_in)
        send_payload(skb, flow, &packet);
    return CONTINUE;
}

SEC("tc")
int to_guest(struct __sk_buff *skb) {
    struct packet packet = {};
    if (!accept(skb, false, &packet)) return CONTINUE;
    struct flow *flow = lookup(&flows, &packet.key);
    if (!flow) flow = lookup(&attempts, &packet.key);
    if (!flow) return CONTINUE; /* an answer to what is not listed, which is counted in `totals` */
    flow->last_ns = now_ns();
    add(&flow->packets_in, packet.packets);
    add(&flow->bytes_in, packet.payload_bytes);
    if (packet.tcp_flags & ~flow->flags_in) flow->flags_in |= packet.tcp_flags;
    return CONTINUE;
}

SEC("license") char license_text[] = "Apache-2.0";
