/* Makes calls on the store's files fail as the file that FAULTS names says: "write 5" or "sync 5", an errno
 * behind it; -1 lets them hang. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static int fault(int fd, const char *kind) {
    char link[64], path[4096], order[64], wanted[16];
    const char *orders = getenv("FAULTS");
    int code = 0, file;
    ssize_t length;
    if (!orders) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    if (!strstr(path, "chat.db")) return 0;
    file = open(orders, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    length = read(file, order, sizeof order - 1);
    close(file);
    if (length <= 0) return 0;
    order[length] = 0;
    if (sscanf(order, "%15s %d", wanted, &code) != 2 || strcmp(wanted, kind) != 0) return 0;
    while (code < 0) pause();
    return code;
}

#define FAIL(kind) do { int code = fault(fd, kind); if (code) { errno = code; return -1; } } while (0)

ssize_t write(int fd, const void *bytes, size_t length) {
    FAIL("write");
    return syscall(SYS_write, fd, bytes, length);
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) {
    FAIL("write");
    return syscall(SYS_pwrite64, fd, bytes, length, offset);
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) {
    FAIL("write");
    return syscall(SYS_pwrite64, fd, bytes, length, offset);
}

int fsync(int fd) {
    FAIL("sync");
    return syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    FAIL("sync");
    return syscall(SYS_fdatasync, fd);
}
