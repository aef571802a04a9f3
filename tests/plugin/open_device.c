/* Opens the device that is named, and prints what came of it: "OK", or the status and the message. */
#include <kvc/experimental.h>
#include <kvc/kvc.h>
#include <stdio.h>

int main(int argc, char **argv) {
  char message[512], name[32];
  kvc_device *device = NULL;
  kvc_status status;
  int32_t n = 0;
  if (argc != 2) return 2;
  status = kvc_device_open(argv[1], NULL, NULL, &device);
  kvc_last_error_copy(message, sizeof message);
  printf("%s%s%s\n", kvc_status_name(status), status == KVC_OK ? "" : ": ", status == KVC_OK ? "" : message);
  while (kvc_device_name(n, name, sizeof name) == KVC_OK) n++;
  printf("devices: %d\n", (int)n);
  return kvc_device_close(device) != KVC_OK;
}
