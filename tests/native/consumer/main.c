#include <posecrafter/posecrafter.h>
#include <stdio.h>

/* That the header is C, and the library is found and refuses what is not there. */
int main(void) {
    pc_session* session = NULL;
    pc_status status = pc_open("/nowhere", NULL, &session);
    printf("%s %d %s\n", pc_version(), status, pc_last_error_code());
    return session != NULL;
}
