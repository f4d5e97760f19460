/* A stand-in for libnvidia-ml.so.1 whose GPU follows a power trace that the test knows, on a clock that it sets.
 *
 * The test reaches the knobs below by name. Times are seconds, powers watts. The energy counter ticks every
 * fake_tick_s; with fake_part_time each tick is extrapolated from its first quarter, as on an A100.
 * Built without a function (-DNO_FIELDS, -DNO_ENERGY) it is an older driver.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };
enum { CONSTANT = 0, SQUARE = 1, RAMP = 2 };
enum { UNSIGNED_INT = 1, UNSIGNED_LONG_LONG = 3 };

typedef struct {
  unsigned int field_id, scope_id;
  long long timestamp_us, latency_us;
  int value_type, nvml_return;
  union { double d; unsigned int ui; unsigned long long ull; } value;
} field_value;

double fake_now_s = 0, fake_low_w = 100, fake_high_w = 300, fake_period_s = 1, fake_phase_s = 0, fake_tick_s = 0.1;
double fake_lost_at_s = 1e9, fake_reset_at_s = 1e9;
int fake_shape = CONSTANT, fake_part_time = 0, fake_mig = 0, fake_virtualization = 0, fake_stuck = 0;
int fake_init_error = 0, fake_energy_error = 0, fake_instant_error = 0, fake_average_error = 0, fake_usage_error = 0;
int fake_field_calls = 0, fake_slice = 0, fake_processes_error = 0, fake_hides_memory = 0;
int fake_pid = 0; /* this process as the driver numbers it; 0: the driver lists only others */
unsigned long long fake_process_bytes = 0;

typedef struct {
  unsigned int pid;
  unsigned long long used_bytes;
  unsigned int gpu_instance, compute_instance;
} process_info;

/* joules since time 0 */
double fake_energy_j(double t) {
  if (fake_shape == CONSTANT) return fake_low_w * t;
  if (fake_shape == RAMP) return fake_low_w * t + (fake_high_w - fake_low_w) * t * t / (2 * fake_period_s);
  t += fake_phase_s; /* a square wave, high in the first half of its period */
  double periods = floor(t / fake_period_s), rest = t - periods * fake_period_s, half = fake_period_s / 2;
  double high_s = periods * half + (rest < half ? rest : half);
  return fake_low_w * t + (fake_high_w - fake_low_w) * high_s;
}

static double power_w(double t, double over_s) { return (fake_energy_j(t) - fake_energy_j(t - over_s)) / over_s; }

static double counter_j(void) {
  long ticks = (long)floor(fake_now_s / fake_tick_s + 1e-9);
  if (fake_stuck) return 1000;
  double from = fake_now_s >= fake_reset_at_s ? 0 : 1000;
  if (!fake_part_time) return from + fake_energy_j(ticks * fake_tick_s) - fake_energy_j(0);
  double sum = 0;
  for (long k = 0; k < ticks; k++)
    sum += 4 * (fake_energy_j((k + 0.25) * fake_tick_s) - fake_energy_j(k * fake_tick_s));
  return from + sum;
}

static int lost(void) { return fake_now_s >= fake_lost_at_s; }

int nvmlInitWithFlags(unsigned int flags) { (void)flags; return fake_init_error; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "fake error"; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 1; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int i, void **device) { *device = (void *)1; return i ? NOT_FOUND : SUCCESS; }
int nvmlDeviceGetUUID(void *d, char *uuid, unsigned int n) { (void)d; snprintf(uuid, n, "GPU-fake"); return SUCCESS; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
  *device = (void *)1;
  return strcmp(uuid, fake_slice ? "MIG-fake" : "GPU-fake") ? NOT_FOUND : SUCCESS;
}
int nvmlDeviceGetMigMode(void *d, unsigned int *now, unsigned int *next) {
  (void)d; *now = *next = fake_mig; return SUCCESS;
}
int nvmlDeviceGetVirtualizationMode(void *d, int *mode) { (void)d; *mode = fake_virtualization; return SUCCESS; }
int nvmlDeviceGetCudaComputeCapability(void *d, int *major, int *minor) {
  (void)d; *major = fake_part_time ? 8 : 7; *minor = 0; return SUCCESS;
}
int nvmlDeviceGetEnforcedPowerLimit(void *d, unsigned int *mw) { (void)d; *mw = 400000; return SUCCESS; }
int nvmlDeviceGetClockInfo(void *d, int kind, unsigned int *mhz) { (void)d; *mhz = kind ? 1400 : 0; return SUCCESS; }
int nvmlDeviceGetTemperature(void *d, int sensor, unsigned int *c) { (void)d; (void)sensor; *c = 40; return SUCCESS; }
int nvmlDeviceGetPowerUsage(void *d, unsigned int *mw) {
  (void)d; *mw = (unsigned int)(1000 * power_w(fake_now_s, 1)); return lost() ? GPU_IS_LOST : fake_usage_error;
}
#ifndef NO_PROCESSES
int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned int *count, process_info *infos) {
  (void)d;
  unsigned int room = *count, there = fake_pid ? 2 : 1;
  if (fake_processes_error) return fake_processes_error;
  *count = there;
  if (room < there) return INSUFFICIENT_SIZE;
  for (unsigned int i = 0; i < there; i++) {
    infos[i] = (process_info){1, 5ull << 30, -1u, -1u}; /* somebody else's */
    if (i) infos[i] = (process_info){fake_pid, fake_hides_memory ? -1ull : fake_process_bytes, -1u, -1u};
  }
  return SUCCESS;
}
#endif
#ifndef NO_ENERGY
int nvmlDeviceGetTotalEnergyConsumption(void *d, unsigned long long *mj) {
  (void)d; *mj = (unsigned long long)(1000 * counter_j()); return lost() ? GPU_IS_LOST : fake_energy_error;
}
#endif
#ifndef NO_FIELDS
static void fill(field_value *f) {
  f->timestamp_us = (long long)(fake_now_s * 1e6) + 1;
  f->value_type = UNSIGNED_INT;
  f->nvml_return = SUCCESS;
  double update_s = floor(fake_now_s / fake_tick_s) * fake_tick_s; /* sensors hold their value until the next tick */
  switch (f->field_id) {
  case 83:
    f->value_type = UNSIGNED_LONG_LONG;
    f->value.ull = (unsigned long long)(1000 * counter_j());
    f->nvml_return = fake_energy_error;
    break;
  case 186: f->value.ui = (unsigned int)(1000 * power_w(update_s, 0.001)); f->nvml_return = fake_instant_error; break;
  case 185: f->value.ui = (unsigned int)(1000 * power_w(update_s, 1)); f->nvml_return = fake_average_error; break;
  case 74:
    f->value_type = UNSIGNED_LONG_LONG;
    f->value.ull = (unsigned long long)(fake_now_s * 0.25e9);
    break;
  default: f->nvml_return = NOT_SUPPORTED;
  }
  if (f->nvml_return != SUCCESS) f->value.ull = 0xdeadbeef; /* undefined, says the manual */
}
int nvmlDeviceGetFieldValues(void *d, int n, field_value *fields) {
  (void)d;
  fake_field_calls += n;
  if (lost()) return GPU_IS_LOST;
  for (int i = 0; i < n; i++) fill(&fields[i]);
  return SUCCESS;
}
#endif
