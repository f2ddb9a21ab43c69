/* What a job may not do, whatever its user: capabilities that it can never have, system calls that answer ENOSYS.
 *
 * It is done once, in the reaper, which passes it on to all that it starts and needs none of it itself. */
#include "agent.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What an image whose user is root may need: packages, files of many owners, other users, ports below 1024. Nothing that
 * reaches the machine itself: no modules, mounts, devices, raw memory, tracing of others, reboot, or network settings. */
static const uint8_t root_capabilities[] = {
    CAP_CHOWN,  CAP_DAC_OVERRIDE, CAP_FOWNER,           CAP_FSETID,  CAP_KILL,       CAP_SETGID,      CAP_SETUID,
    CAP_SETPCAP, CAP_SETFCAP,     CAP_NET_BIND_SERVICE, CAP_NET_RAW, CAP_SYS_CHROOT, CAP_AUDIT_WRITE,
};

/* Parts of the kernel that jobs do without and that have had more than their share of its bugs. */
static const uint32_t closed_calls[] = {
    SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register, SYS_keyctl,         SYS_add_key,
    SYS_request_key,    SYS_userfaultfd,    SYS_bpf,               SYS_perf_event_open,
};

/* The same by their numbers for programs of 32 bits, the only others that such a kernel runs. */
#if defined(__x86_64__)
static const uint32_t native_arch = AUDIT_ARCH_X86_64;
static const uint32_t compat_calls[] = {425, 426, 427, 288, 286, 287, 374, 357, 336};
#elif defined(__aarch64__)
static const uint32_t native_arch = AUDIT_ARCH_AARCH64;
static const uint32_t compat_calls[] = {425, 426, 427, 311, 309, 310, 388, 386, 364};
#else
#error "the system calls of this architecture are not known here"
#endif
enum { CALLS = sizeof closed_calls / sizeof closed_calls[0] };
_Static_assert(sizeof compat_calls == sizeof closed_calls, "each call has both numbers");

enum { X32_BIT = 0x40000000, LIST_SIZE = CALLS + 2, PROGRAM_SIZE = 5 + 2 * LIST_SIZE };

static bool is_kept(int capability)
{
    for (size_t i = 0; i < sizeof root_capabilities; i++)
        if (root_capabilities[i] == capability)
            return true;
    return false;
}

/* Out of the bounding set (capabilities(7)): no exec gives them back. A user that is not root has none to keep. */
static bool drop_capabilities(uint32_t uid)
{
    for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++)
        if ((uid != 0 || !is_kept(capability)) && prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0)
            return false;
    return true;
}

/* ENOSYS for each of the calls, and else the call itself. */
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
    at = put_list(at, closed_calls);
    *at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    at = put_list(at, compat_calls);
    struct sock_fprog filter = {.len = (unsigned short)(at - program), .filter = program};
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &filter) == 0;
}

/* As root, before anything of the job is started; false with errno. */
bool drop_privileges(uint32_t uid)
{
    return drop_capabilities(uid) && filter_calls();
}
