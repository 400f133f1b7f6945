import { once } from "node:events";
import { connect, createServer, type Server as Listener, type Socket } from "node:net";

/** A network between one device and the nodes of a server, which can be cut and repaired. Each new
 * connection goes to another node than the last one. */
export class Link {
  readonly #sockets = new Set<Socket>();
  #isCut = false;
  #carried = 0;

  private constructor(
    private readonly listener: Listener,
    private readonly ports: readonly number[],
  ) {
    listener.on("connection", (socket) => this.#carry(socket));
  }

  static async to(ports: readonly number[]): Promise<Link> {
    const listener = createServer().listen(0, "127.0.0.1");
    await once(listener, "listening");
    return new Link(listener, ports);
  }

  get url(): string {
    return `http://127.0.0.1:${(this.listener.address() as { port: number }).port}`;
  }

  #carry(near: Socket): void {
    if (this.#isCut) return void near.destroy();
    const far = connect(this.ports[this.#carried++ % this.ports.length] as number, "127.0.0.1");
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      this.#sockets.add(from);
      from.on("error", () => to.destroy());
      from.on("close", () => {
        this.#sockets.delete(from);
        to.destroy();
      });
      from.pipe(to);
    }
  }

  /** Breaks every connection. */
  break(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  /** Breaks every connection, and refuses new ones until `repair`. */
  cut(): void {
    this.#isCut = true;
    this.break();
  }

  repair(): void {
    this.#isCut = false;
  }

  close(): void {
    this.cut();
    this.listener.close();
  }
}
