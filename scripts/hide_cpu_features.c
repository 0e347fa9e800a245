/* Hides AVX-512, AMX and the 8-bit dot products (VNNI) from a program; see scripts/hide-cpu-features.
 *
 * Linux can let the CPUID instruction fault (arch_prctl with ARCH_CPUID). The handler of that fault executes the
 * instruction for the program and clears the bits of these features. All other code runs natively, so a library that
 * chooses its code by CPUID runs what it would run on an older CPU.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef ARCH_CPUID
#define ARCH_CPUID 0x1012
#endif

#define BIT(n) (1u << (n))

/* Leaf 7, subleaf 0: the parts of AVX-512, AVX512_VNNI and AMX. */
static const uint32_t EBX_7_0 = BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31);
static const uint32_t ECX_7_0 = BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14);
static const uint32_t EDX_7_0 = BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25);
/* Leaf 7, subleaf 1: AVX-VNNI, AVX512_BF16, AMX-FP16, AVX-IFMA; AVX-VNNI-INT8, AVX-NE-CONVERT, AVX-VNNI-INT16, AVX10. */
static const uint32_t EAX_7_1 = BIT(4) | BIT(5) | BIT(21) | BIT(23);
static const uint32_t EDX_7_1 = BIT(4) | BIT(5) | BIT(10) | BIT(19);

static void set_cpuid(int allowed) { syscall(SYS_arch_prctl, ARCH_CPUID, allowed); }

static void on_fault(int number, siginfo_t *info, void *context) {
    (void)info;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *code = (const uint8_t *)registers[REG_RIP];
    if (code[0] != 0x0f || code[1] != 0xa2) { /* Another fault: the instruction is repeated without this handler. */
        signal(number, SIG_DFL);
        return;
    }
    uint32_t leaf = (uint32_t)registers[REG_RAX], subleaf = (uint32_t)registers[REG_RCX];
    uint32_t eax, ebx, ecx, edx;
    set_cpuid(1);
    __cpuid_count(leaf, subleaf, eax, ebx, ecx, edx);
    set_cpuid(0);
    if (leaf == 7 && subleaf == 0) {
        ebx &= ~EBX_7_0, ecx &= ~ECX_7_0, edx &= ~EDX_7_0;
    } else if (leaf == 7 && subleaf == 1) {
        eax &= ~EAX_7_1, edx &= ~EDX_7_1;
    }
    registers[REG_RAX] = eax, registers[REG_RBX] = ebx, registers[REG_RCX] = ecx, registers[REG_RDX] = edx;
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void hide(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigaction(SIGSEGV, &action, NULL);
    if (syscall(SYS_arch_prctl, ARCH_CPUID, 0) != 0) {
        fputs("hide-cpu-features: this CPU or kernel cannot let CPUID fault\n", stderr);
        _exit(1);
    }
}
