/* File operations: small programs that run as the sandbox's user in its namespaces, each in a process of its own.
 * Their arguments come from the host. Input and output are the standard streams; the exit code is 0 or an errno. Paths
 * are looked up below a root, and no link leads out of it. */
#ifndef BELLJAR_FILE_OPERATION_H
#define BELLJAR_FILE_OPERATION_H

#include "agent.h"

#include <sys/stat.h>

enum { MAX_FILE_PATH = 4095, MAX_FILE_NAME = 255, RECORD_SIZE = 40, MAX_FOLDERS = 128 };

/* Kinds of records in the input and output of file operations; files.py has the same. */
enum record_kind {
    RECORD_ENTRY = 1,      /* a file, folder or link; for `read` and `archive` its bytes follow */
    RECORD_UNREADABLE = 2, /* a folder whose entries cannot be listed */
    RECORD_EVENT = 3,      /* of a watch: type is an enum event */
    RECORD_PORT = 4,       /* a listening port: type is 4 or 6, size the port, path the address */
    RECORD_END = 5,        /* the last record of an archive */
};

enum event { EVENT_READY = 1, EVENT_CREATE, EVENT_WRITE, EVENT_REMOVE, EVENT_MOVE_FROM, EVENT_MOVE_TO, EVENT_ATTRIBUTES,
             EVENT_OVERFLOW };

/* kind u8, type u8, mode u16, uid u32, gid u32, path length u16, target length u16, size u64, modified u64
 * (nanoseconds), zero u64, path, target */
struct record {
    uint8_t kind, type;
    uint16_t mode;
    uint32_t uid, gid;
    uint64_t size, modified_ns;
    const char *path, *target;
};

typedef int operation(char **arguments); /* returns 0 or an errno */

/* file_operation.c */
int run_file_operation(char **argv);
int open_in_root(int root, const char *path, int flags);
int open_parent(int root, const char *path, char *name);
int open_path(char **arguments, int flags);
int open_regular(int file, int flags);
int make_parents(int root, const char *path, mode_t mode);

/* records.c */
int put_record(const struct record *record);
int put_bytes(const void *data, size_t size);
int flush_records(void);
int get_record(struct record *record, char *path, char *target);
struct record record_of(const struct stat *status, const char *path, const char *target);

/* file_content.c */
operation read_content, write_content;

/* file_tree.c */
operation stat_path, list_folder, remove_path, move_path, make_path, change_mode;
/* What a walk visits: a file, a folder before its entries and after them, a folder that it cannot read. */
enum visit { VISIT_FILE, VISIT_FOLDER, VISIT_AFTER, VISIT_UNREADABLE };
typedef int visit_entry(int folder, const char *name, const char *path, const struct stat *status, enum visit visit);
int walk(int folder, unsigned depth, visit_entry *visit);

/* file_archive.c */
operation archive_folder, extract_archive;

/* file_watch.c */
operation watch_path;

/* listening_ports.c */
operation list_ports;

#endif
