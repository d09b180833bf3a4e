/* Lets Debian's user-mode-linux 6.1 run on processors whose saved registers are larger than it knows.
 *
 * It reads and writes a traced process's registers (NT_X86_XSTATE) in a buffer of its own fixed size. Where the processor
 * has more (AMX: 11,008 bytes instead of 2,696) the kernel hands over what fits, but takes only all of them back. So what
 * is written is put over what is there, and all of that is written. Registers keep their places in that format whatever
 * comes behind them (Intel SDM volume 1, 13.4). Loaded by LD_PRELOAD.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { LARGEST = 65536 };

long ptrace(enum __ptrace_request request, ...)
{
	va_list rest;
	va_start(rest, request);
	pid_t pid = va_arg(rest, pid_t);
	void *address = va_arg(rest, void *);
	void *data = va_arg(rest, void *);
	va_end(rest);

	static char all[LARGEST];
	struct iovec whole = { all, sizeof all };
	if (request == PTRACE_SETREGSET && (long)address == NT_X86_XSTATE) {
		const struct iovec *given = data;
		if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, address, &whole) == 0 && whole.iov_len > given->iov_len) {
			memcpy(all, given->iov_base, given->iov_len);
			data = &whole;
		}
	}
	/* As glibc does: of these the kernel returns the word by an address. */
	long word;
	int peeks = request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER;
	long result = syscall(SYS_ptrace, request, pid, address, peeks ? &word : data);
	if (peeks && result == 0) {
		errno = 0;
		return word;
	}
	return result;
}
