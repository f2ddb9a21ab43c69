/* Privileges that every job lacks, root or not: capabilities, and system calls that fail with ENOSYS.
 * The reaper drops them once; every process of the job inherits that. */
#include "agent.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Capabilities that an image with user root needs: for packages, files of other owners, other users, ports below 1024.
 * None gives access to the machine itself: modules, mounts, devices, raw memory, tracing, reboot, network settings. */
static const uint8_t root_capabilities[] = {
    CAP_CHOWN,  CAP_DAC_OVERRIDE, CAP_FOWNER,           CAP_FSETID,  CAP_KILL,       CAP_SETGID,      CAP_SETUID,
    CAP_SETPCAP, CAP_SETFCAP,     CAP_NET_BIND_SERVICE, CAP_NET_RAW, CAP_SYS_CHROOT, CAP_AUDIT_WRITE,
};

/* Kernel interfaces that jobs do not need and that have had many vulnerabilities. */
static const uint32_t blocked_calls[] = {
    SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register, SYS_keyctl,         SYS_add_key,
    SYS_request_key,    SYS_userfaultfd,    SYS_bpf,               SYS_perf_event_open,
};

/* Their numbers for 32-bit programs, the only other architecture that such a kernel runs. */
#if defined(__x86_64__)
static const uint32_t native_arch = AUDIT_ARCH_X86_64;
static const uint32_t compat_calls[] = {425, 426, 427, 288, 286, 287, 374, 357, 336};
#elif defined(__aarch64__)
static const uint32_t native_arch = AUDIT_ARCH_AARCH64;
static const uint32_t compat_calls[] = {425, 426, 427, 311, 309, 310, 388, 386, 364};
#else
#error "unknown system call numbers of this architecture"
#endif
enum { CALLS = sizeof blocked_calls / sizeof blocked_calls[0] };
_Static_assert(sizeof compat_calls == sizeof blocked_calls, "each call has both numbers");

enum { X32_BIT = 0x40000000, LIST_SIZE = CALLS + 2, PROGRAM_SIZE = 5 + 2 * LIST_SIZE };

static bool is_root_capability(int capability)
{
    for (size_t i = 0; i < sizeof root_capabilities; i++)
        if (root_capabilities[i] == capability)
            return true;
    return false;
}

/* Drop capabilities from the bounding set (capabilities(7)), so that no exec restores them. Users but root keep
 * none. */
static bool drop_capabilities(uint32_t uid)
{
    for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++)
        if ((uid != 0 || !is_root_capability(capability)) && prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0)
            return false;
    return true;
}

/* Append a filter that fails each of the calls with ENOSYS and allows all others. */
static struct sock_filter *put_list(struct sock_filter *at, const uint32_t *calls)
{
    for (size_t i = 0; i < CALLS; i++)
        *at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i], (uint8_t)(CALLS - i), 0);
    *at++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    *at++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS);
    return at;
}

static bool filter_calls(void)
{
    struct sock_filter program[PROGRAM_SIZE], *at = program;
    *at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    *at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, native_arch, 0, 2 + LIST_SIZE);
    *at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    *at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, X32_BIT, LIST_SIZE - 1, 0);
    at = put_list(at, blocked_calls);
    *at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    at = put_list(at, compat_calls);
    struct sock_fprog filter = {.len = (unsigned short)(at - program), .filter = program};
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &filter) == 0;
}

/* Reduce the capabilities to those that an exec by root would leave; other users have none already. */
bool limit_to_bounding_set(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{0, 0, 0}, {0, 0, 0}};
    if (syscall(SYS_capget, &header, data) < 0)
        return false;
    for (int capability = 0; capability < 64; capability++) {
        uint32_t bit = 1u << (capability % 32), *permitted = &data[capability / 32].permitted;
        if ((*permitted & bit) && prctl(PR_CAPBSET_READ, capability, 0, 0, 0) != 1)
            *permitted &= ~bit;
    }
    for (int half = 0; half < 2; half++) {
        data[half].effective = data[half].permitted;
        data[half].inheritable = 0;
    }
    return syscall(SYS_capset, &header, data) == 0;
}

/* Call as root, before the job's first process starts; returns false with errno. */
bool drop_privileges(uint32_t uid)
{
    return drop_capabilities(uid) && filter_calls();
}
